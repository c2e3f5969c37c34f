"""Planning: what a run needs of declared machines and how fast it can go there, from arithmetic alone.

A project says what a step does (`workload.py`); this room says what that costs in memory, on the links and in time
(`plan.py`). Nothing is imported here: a run asks `tables.py` for sizes and need not wait for torchrec's planner.
"""
