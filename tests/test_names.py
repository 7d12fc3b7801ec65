"""What layers are called where people read."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from conftest import FewDigits, RunScript

from bitflip import report
from bitflip.__main__ import main
from bitflip.commands import verify
from bitflip.network.names import label, ordinal

NET = """\
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        return self.out(self.relu(self.inner(self.relu(x.flatten(1)))))

def net():
    torch.manual_seed(0)
    net = Net()
    net.relu, net.inner, net.out = nn.ReLU(), nn.Linear(3072, 16), nn.Linear(16, 10)
    return net
"""


@pytest.mark.parametrize(("number", "text"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (22, "22nd")])
def test_ordinals(number: int, text: str) -> None:
    assert ordinal(number) == text


def test_no_two_places_are_called_the_same() -> None:
    places = list(product(["a", "a.b"], range(3), ["weight", "bias"]))
    assert len({label(*place) for place in places}) == len(places)


def test_a_second_call_is_called_the_same_everywhere(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(40)
    (tmp_path / "net.py").write_text(NET)
    shared = ("--dataset=digits", f"--model-name={tmp_path / 'net.py'}:net", "--seed=1", f"--output-path={tmp_path}")
    done = run_script("main.py", *shared, "--no-plots", "--bit-flip-pos=1")
    second = label("relu", 1)
    assert done.code == 0, done.err
    named = "#3 ReLU (path relu, 2nd call)"
    assert f"  {named}\n" in done.out
    [table] = tmp_path.glob("*_1.csv")
    assert second in [row.place.label for row in report.read(table).layers]
    assert main(["compare", str(table), str(table)]) == 0
    assert f"  {named}\n" in capsys.readouterr().out
    assert main(["plan", *shared[:-1]]) == 0
    assert f"ReLU      {second}  " in capsys.readouterr().out
    assert verify._layer(("weight", "relu", 1)) == second
