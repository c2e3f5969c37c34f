"""`tml light-ranker export`: a checkpoint as a folder that serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export_command(
    save_dir: Annotated[Path, typer.Argument(metavar="SAVE_DIR", help="Checkpoint folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="Folder to make; SAVE_DIR/export by default.")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Step to export; else the best or latest.")] = None,
    int8: Annotated[bool, typer.Option(help="Also write the model in 8 bits, and print its cost in AUC.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an exported ranker that lies there.")] = True,
) -> None:
    """Write a checkpoint as ONNX with its vocabularies and signature, and check that it scores like the trainer."""
    from tml.projects.light_ranker.export.ranker import export_ranker
    from tml.projects.light_ranker.phases import load_trained, require_trained

    trained = load_trained(save_dir, step)
    require_trained(save_dir, trained.step)
    folder = export_ranker(
        trained.model,
        out or save_dir / "export",
        features_dir=trained.features_dir,
        isotonic=trained.isotonic,
        settings=trained.config.export.model_copy(update={"int8": True} if int8 else {}),
        facts=trained.facts,
        evaluation_files=trained.evaluation_files,
        overwrite=overwrite,
    )
    typer.echo(f"exported to {folder}; serve it with `tml light-ranker serve {folder}`")
