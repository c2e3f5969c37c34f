"""The base of every config section: typed, frozen and strict about keys, kinds and alternatives."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from tml.core.config.kinds import kind_mismatch


class BaseConfig(pydantic.BaseModel):
    """A section of a config.

    Instances are immutable. Unknown keys are refused with the nearest known one, text is never taken for a number and
    numbers never for true or false, and defaults are validated like given values.

    A subclass may name alternatives, as tuples of groups of field names; a field counts as set when it is not None:

        one_of = (("sgd", "adagrad"),)              exactly one field of each group is set
        at_most_one_of = (("limit", "fraction"),)   no two fields of a group are set
    """

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=True,
        ser_json_inf_nan="constants",
        protected_namespaces=(),
    )

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()
    at_most_one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for group in (*cls.one_of, *cls.at_most_one_of):
            strangers = [name for name in group if name not in cls.model_fields]
            if strangers or isinstance(group, str):
                raise TypeError(f"{cls.__name__}: a group names {strangers or group!r}, which is no field of it")

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        kinds = cls._kind_faults(data) if isinstance(data, Mapping) else {}
        lines = [InitErrorDetails(type=_custom("kind", why), loc=(key,), input=data[key]) for key, why in kinds.items()]
        config = None
        try:
            config = handler(data)
            values = {name: getattr(config, name) for name in cls.model_fields}
        except pydantic.ValidationError as error:
            faults = error.errors(include_url=False)
            lines += [cls._line_error(fault) for fault in faults if fault["loc"][:1] not in {(key,) for key in kinds}]
            # Groups are looked at in the raw values too, so that one report holds every fault.
            values = cls._raw_values(data) if isinstance(data, Mapping) else {}
        lines += [InitErrorDetails(type=_custom("group", why), loc=(), input=data) for why in cls._group_faults(values)]
        if config is None or lines:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, lines)
        return config

    @classmethod
    def _kind_faults(cls, data: Mapping[str, Any]) -> dict[str, str]:
        """Field name -> what is wrong with the kind of its value."""
        given = {name: field.annotation for name, field in cls.model_fields.items() if name in data}
        faults = {name: kind_mismatch(annotation, data[name]) for name, annotation in given.items()}
        return {name: fault for name, fault in faults.items() if fault}

    @classmethod
    def _raw_values(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {name: data.get(name, field.get_default()) for name, field in cls.model_fields.items()}

    @classmethod
    def _group_faults(cls, values: Mapping[str, Any]) -> list[str]:
        faults: list[str] = []
        if not values:
            return faults
        for group in cls.one_of:
            given = [name for name in group if values[name] is not None]
            if len(given) != 1:
                faults.append(f"exactly one of {_listed(group)} must be set, not {_listed(given) or 'none of them'}")
        for group in cls.at_most_one_of:
            given = [name for name in group if values[name] is not None]
            if len(given) > 1:
                faults.append(f"at most one of {_listed(group)} may be set, not {_listed(given)}")
        return faults

    @classmethod
    def _line_error(cls, error: Any) -> InitErrorDetails:
        kind: str | PydanticCustomError
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            kind = _custom("unknown_key", f"unknown key{did_you_mean(str(error['loc'][0]), cls.model_fields)}")
        else:
            kind = _same_kind(error)
        return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A tail for a message: the nearest of the `known` words, or else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _custom(kind: str, message: str) -> PydanticCustomError:
    # The message travels as a value, so that braces in it are not taken for a template.
    return PydanticCustomError(kind, "{message}", {"message": message})  # type: ignore[arg-type]


def _same_kind(error: Any) -> str | PydanticCustomError:
    try:
        PydanticKnownError(error["type"], error.get("ctx"))
    except (KeyError, TypeError):
        return _custom(error["type"], error["msg"])
    return str(error["type"])
