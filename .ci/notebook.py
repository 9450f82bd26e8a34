# How `make run` and `make notebook` execute the notebook: a configuration file of nbconvert (--config).
# In a terminal one line says how far it is; streams are folded afterwards, so that of a bar's many states the last stays.
import sys
import time

c = get_config()  # noqa: F821 (nbconvert puts it there)
c.NotebookExporter.preprocessors = [
    "nbconvert.preprocessors.ExecutePreprocessor",
    "nbconvert.preprocessors.CoalesceStreamsPreprocessor",
]
c.ExecutePreprocessor.timeout = -1
c.ExecutePreprocessor.record_timing = False
began, cells = time.monotonic(), []


def count_cells(*, notebook):
    cells[:] = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def show_cell(*, cell, cell_index):
    if cell_index in cells and sys.stderr.isatty():
        place = f"cell {cells.index(cell_index) + 1} of {len(cells)}, {time.monotonic() - began:.0f} s so far: "
        print(f"\r\033[K{place}{cell.source.splitlines()[0][:60]}", end="", file=sys.stderr, flush=True)


def end_line(*, cell, cell_index, execute_reply):
    if cell_index == cells[-1] and sys.stderr.isatty():
        print(file=sys.stderr)


c.ExecutePreprocessor.on_notebook_start = count_cells
c.ExecutePreprocessor.on_cell_start = show_cell
c.ExecutePreprocessor.on_cell_executed = end_line
c.ExecutePreprocessor.on_cell_error = lambda **error: print(file=sys.stderr)
