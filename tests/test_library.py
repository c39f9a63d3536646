import logging
import subprocess
import sys

import pytest

from lspm_ray.errors import ConfigError
from lspm_ray.library import Library


def test_what_is_not_installed_says_how_to_get_it(monkeypatch):
    Library("json", "tables").check("recipe.0", "x")
    monkeypatch.setitem(sys.modules, "absent", None)
    with pytest.raises(ConfigError, match=r"recipe\.0: needs the library absent.*'x'.*lspm-ray\[tables\]"):
        Library("absent", "tables").check("recipe.0", "x")


def test_models_are_imported_in_silence():
    # Transformers imports torchao with any model, where it is installed.
    code = "import lspm_ray; from transformers import BertForSequenceClassification"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["torchao", "torch.utils._pytree"])
def test_other_messages_of_those_libraries_are_kept(name):
    record = logging.LogRecord(name, logging.WARNING, "", 0, "%s happened", ("something",), None)
    assert logging.getLogger(name).filter(record)
