"""Which changes of a source make evidence stale, and which do not."""

import subprocess
import sys

import pytest

from polopt.claims import sources

FILES = {
    "pkg/__init__.py": '"""P."""\nif TYPE_CHECKING:\n    import pkg.unused\n',
    "pkg/claim.py": "from pkg.method import method\nfrom pkg import tools\n\nCLAIM = Claim(run=lambda: tools.used(method), threshold=3, "
    "analysis='why')\n",
    "pkg/method.py": "from .maths import loss as objective\n\n\ndef method():\n    from pkg.late import late\n\n    return objective() + late()\n",
    "pkg/maths.py": '"""M."""\nFACTOR = 2\n\n\ndef loss():\n    """Doc."""\n    return FACTOR  # a comment\n\n\ndef other():\n    return 1\n',
    "pkg/late.py": "def late():\n    return 1\n",
    "pkg/tools.py": "import pkg.deep.inner\n\n\ndef used(m):\n    return pkg.deep.inner.f(m)\n\n\n"
    "def unused():\n    from pkg.unused import g\n    return g()\n",
    "pkg/deep/__init__.py": "",
    "pkg/deep/inner.py": "from pkg.stars import *\n\ndef f(m):\n    return m\n",
    "pkg/stars.py": "def star():\n    return 1\n",
    "pkg/unused.py": "def g():\n    return 1\n",
}


@pytest.fixture
def package(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def taken(root):
    return sources.fingerprints("pkg.claim", root=root)


def edit(root, name, old, new):
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_imports_are_followed_wherever_they_stand(package):
    found = taken(package)
    assert list(found) == ["pkg/claim.py", "pkg/deep/inner.py", "pkg/late.py", "pkg/maths.py", "pkg/method.py", "pkg/stars.py", "pkg/tools.py"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/maths.py", "FACTOR = 2", "FACTOR = 3"),
        ("pkg/maths.py", "return FACTOR", "return -FACTOR"),
        ("pkg/late.py", "return 1", "return 2"),
        ("pkg/stars.py", "return 1", "return 2"),
        ("pkg/deep/inner.py", "return m", "return -m"),
        ("pkg/tools.py", "inner.f(m)", "inner.f(-m)"),
        ("pkg/claim.py", "threshold=3", "threshold=2"),
        ("pkg/maths.py", "FACTOR = 2", "FACTOR = 2\nprint(FACTOR)"),  # what runs on import
    ],
)
def test_a_change_that_may_matter_shows(package, name, old, new):
    before = taken(package)
    edit(package, name, old, new)
    after = taken(package)
    assert [path for path in before if before[path] != after[path]] == [name]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/maths.py", "# a comment", "# another"),
        ("pkg/maths.py", '"""Doc."""', '"""Better words."""'),
        ("pkg/maths.py", "return FACTOR ", "return (FACTOR) "),
        ("pkg/maths.py", "def other():\n    return 1", "def other():\n    return 2\n\n\ndef third():\n    return 3"),
        ("pkg/tools.py", "return g()", "return -g()"),
        ("pkg/unused.py", "return 1", "return 2"),
        ("pkg/claim.py", "analysis='why'", "analysis='this is why', seconds=7, slow=True"),
    ],
)
def test_a_change_that_cannot_matter_does_not(package, name, old, new):
    before = taken(package)
    edit(package, name, old, new)
    assert taken(package) == before


def test_a_module_handed_on_counts_whole(package):
    edit(package, "pkg/claim.py", "tools.used(method)", "vars(tools)")
    assert "pkg/unused.py" in taken(package)


def test_a_module_that_is_gone_shows(package):
    (package / "pkg" / "late.py").unlink()
    assert taken(package)["pkg/late.py"] == "missing"


def test_fingerprints_do_not_depend_on_the_process():
    modules = "polopt.methods.policy_gradient.ppo", "polopt.envs.make"
    program = f"from polopt.claims import sources; print(sources.fingerprints(*{modules!r}))"
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=sources.ROOT).stdout
    assert elsewhere.strip() == str(sources.fingerprints(*modules))


def test_a_method_reaches_its_mathematics():
    found = sources.fingerprints("polopt.methods.policy_gradient.ppo")
    assert {"polopt/objectives/surrogates.py", "polopt/loops/on_policy.py", "polopt/core/parts.py", "polopt/optim/adam.py"} <= set(found)
    assert not any(path.startswith("polopt/run/") for path in found)
