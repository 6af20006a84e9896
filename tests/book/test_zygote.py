"""A forked kernel is like one that was started, but for the time that it takes; and no process is left behind."""

import sys
import time
from collections.abc import Callable, Iterator

import nbformat
import psutil
import pytest
from tinybook import TOC, TinyBook, page

from book import kernels
from book.execution import WORTH_A_ZYGOTE
from book.notebooks import book_chapters, find
from book.zygote import Zygote, may_be_forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")

# What a chapter may ask its process about. A kernel's own file, ports and numbers differ with each start.
QUESTIONS = """
import gc, multiprocessing, os, signal, sys, threading
print(sys.path)
print(sys.argv[0], len(sys.argv))
print({k: v for k, v in sorted(os.environ.items()) if not k.startswith("JPY_")})
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM)])
print(gc.isenabled(), gc.get_threshold())
print(multiprocessing.process.ORIGINAL_DIR == os.getcwd())
print(multiprocessing.get_start_method(), multiprocessing.parent_process(), multiprocessing.current_process())
print(len(threading.enumerate()))
print(__name__, sorted(vars()))
"""
LIBRARIES = """
import warnings
warnings.filterwarnings("ignore", message="IProgress not found")  # as llm_learn.notebook does
import matplotlib, torch, transformers, tqdm.auto
from transformers import GPT2LMHeadModel, LlamaForCausalLM
import matplotlib.pyplot as plt
print(matplotlib.get_backend(), plt.isinteractive())
print(torch.get_num_threads(), torch.get_default_dtype(), tqdm.auto.tqdm)
print(torch.nn.functional.gelu(torch.linspace(-1, 1, 100) @ torch.linspace(0, 1, 100)))
print(*sorted(map(str, warnings.filters)), sep="\\n")
"""
LOGGING = """
import logging
print("before", flush=True)
transformers.logging.get_logger("transformers").warning("of transformers")
logging.getLogger("mine").warning("of nobody")
print("after", flush=True)
"""
DRAWING = "_ = plt.plot([1, 3, 2])"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> TinyBook:
    return TinyBook(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def zygote(book: TinyBook) -> Iterator[Zygote]:
    zygote = Zygote(kernels.kernel_environment(book.root))
    yield zygote
    zygote.close()


def execute(
    book: TinyBook, zygote: Zygote | None, *cells: str
) -> tuple[nbformat.NotebookNode, dict]:
    book.write("chapters/part/beta.md", page("Beta", [*cells]))
    beta = find(book_chapters(book.root), "beta")
    return kernels.execute(beta, kernels.kernel_environment(book.root), zygote)


def outputs(notebook: nbformat.NotebookNode) -> list[list[dict]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_a_forked_kernel_answers_what_a_fresh_one_does(
    book: TinyBook, zygote: Zygote
) -> None:
    cells = QUESTIONS, LIBRARIES, DRAWING, LOGGING, "%%bash\necho $COLUMNS $OMP_NUM_THREADS"
    fresh, forked = (outputs(execute(book, z, *cells)[0]) for z in (None, zygote))
    for one, other in zip(forked, fresh, strict=True):
        # Line by line, since a difference should be seen.
        assert [o.get("text", "").splitlines() for o in one] == [
            o.get("text", "").splitlines() for o in other
        ]
    assert forked == fresh and all(forked)


@pytest.mark.slow
def test_what_a_chapter_does_not_import_it_does_not_have(
    book: TinyBook, zygote: Zygote
) -> None:
    with pytest.raises(kernels.ChapterFailed, match="NameError: name 'torch'"):
        execute(book, zygote, "1", "torch.ones(1)")


@pytest.mark.parametrize(
    ("cell", "may"),
    [
        ("import os\nprint(os.getcwd(), environment)", True),
        ("print(environment | {'PATH': 1})", True),
        ("os.environ['A'] = '1'", False),
        ("del os.environ[names['a']]", False),
        ("from os import environ", False),
        ("os.putenv('A', '1')", False),
        ("%env A=1", False),
        ("%set_env A=1", False),
        ("resource.getrusage(resource.RUSAGE_SELF).ru_minflt", False),
        ("open('/proc/self/status')", False),
    ],
)
def test_a_chapter_that_has_to_do_with_its_process_gets_its_own(
    cell: str, may: bool
) -> None:
    assert may_be_forked(["1", cell]) is may


@pytest.mark.slow
def test_each_kernel_is_new_and_its_zygote_keeps_one_thread(
    book: TinyBook, zygote: Zygote
) -> None:
    cell = "import math, torch\nprint(math.pi, torch.is_grad_enabled())\nmath.pi = 3\n_ = torch.set_grad_enabled(False)"
    first, second = (outputs(execute(book, zygote, cell)[0]) for _ in range(2))
    assert first == second
    process = psutil.Process(zygote.process.pid)
    assert process.num_threads() == 1 and not process.children()


@pytest.mark.slow
def test_what_was_imported_before_the_fork_counts(book: TinyBook, zygote: Zygote) -> None:
    used = execute(book, zygote, "1")[1]["cpu_seconds"]
    assert used > execute(book, None, "1")[1]["cpu_seconds"]
    spent = psutil.Process(zygote.process.pid).cpu_times()
    # Forking is cheap beside the imports.
    assert used > (spent.user + spent.system) / 2


@pytest.mark.slow
def test_where_it_has_ended_the_build_says_so(book: TinyBook) -> None:
    zygote = Zygote(kernels.kernel_environment(book.root))
    zygote.process.kill()
    with pytest.raises(RuntimeError, match="to fork kernels from has ended"):
        execute(book, zygote, "1")
    zygote.close()


STARTING = """
import sys
from pathlib import Path
from book import kernels, zygote
from book.notebooks import book_chapters, find
root, = map(Path, sys.argv[1:])
environment = kernels.kernel_environment(root)
parent = zygote.Zygote(environment)
(root / "zygote").write_text(str(parent.process.pid))
kernels.execute(find(book_chapters(root), "beta"), environment, parent)
"""


@pytest.mark.slow
def test_nothing_outlives_a_build_that_is_killed(tiny_book: TinyBook) -> None:
    tell = f"import os\nfrom pathlib import Path\nfolder = Path({str(tiny_book.root)!r})"
    tell += "\n_ = (folder / 'kernel').write_text(str(os.getpid()))"
    tiny_book.write(
        "chapters/part/beta.md", page("Beta", [tell, "import time\ntime.sleep(600)"])
    )
    building = psutil.Popen([sys.executable, "-c", STARTING, str(tiny_book.root)])
    told, running = [tiny_book.root / "zygote", tiny_book.root / "kernel"], [building]
    try:
        assert wait_until(lambda: all(p.exists() and p.read_text() for p in told), 120)
        running += [psutil.Process(int(path.read_text())) for path in told]
        assert running[2].parent() == running[1]
        building.kill()
        building.wait()
        assert wait_until(lambda: not any(process.is_running() for process in running))
    finally:
        kernels._kill(running)


@pytest.mark.slow
def test_a_build_of_many_chapters_forks_and_leaves_nothing_behind(
    tiny_book: TinyBook,
) -> None:
    names = [f"many-{number}" for number in range(WORTH_A_ZYGOTE)]
    asking = (
        "import os\nprint('book.zygote' in open(f'/proc/{os.getppid()}/cmdline').read())"
    )
    for name in names:
        tiny_book.write(f"chapters/part/{name}.md", page(name, [asking]))
    tiny_book.write(
        "_toc.yml", TOC + "".join(f"- file: chapters/part/{name}\n" for name in names)
    )
    result = tiny_book.build()
    assert result.returncode == 0, result.stderr
    for name in names:
        assert "True" in tiny_book.notebook(name).read_text()
    # Kernels run in folders of their own: only their environment tells whose they were.
    left = psutil.process_iter(["environ"])
    assert not [p for p in left if str(tiny_book.root) in str(p.info["environ"])]


def wait_until(happens: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happens()
