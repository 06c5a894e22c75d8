"""The command line: exit codes, messages, and what reaches a campaign tool."""

import csv
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pipeline import Shop, checked_template, copy_of

from winback import __version__
from winback.__main__ import main

UNREACHABLE = "postgres://winback:secret@127.0.0.1:1/shop"


@pytest.fixture(scope="module")
def shop(servers) -> Iterator[Shop]:
    """A shop whose run ``first`` is published."""
    with copy_of(checked_template(servers), servers) as shop:
        shop.daily_run().execute("publish")
        yield shop


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> list[str]:
    """Arguments for a data folder without servers, in an environment without connections."""
    for name in ("AIRFLOW_CONN_WINBACK_WAREHOUSE", "AIRFLOW_CONN_WINBACK_REDIS", "AIRFLOW_HOME"):
        monkeypatch.delenv(name, raising=False)
    return ["--data-dir", str(tmp_path)]


def test_python_m_winback_says_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "winback", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"winback {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--buget", "5"], "--buget"),
        (["run", "--publish=maybe"], "publish"),
        (["export", "-o", "x.csv"], "--as-of"),
        (["export", "--as-of", "yesterday", "-o", "x.csv"], "expected a date like 2026-01-31"),
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "-1"], "budget: Input should be greater than or equal to 0 (came '-1')"),
        (["--budget", "much"], "budget: "),
        (["--as-of", "2024-02-30"], "as_of: "),
        (["--timezone", "Mars"], "expected an IANA timezone such as Europe/Berlin"),
        (["--gamma", "1", "--epochs", "0"], "(2 rows)"),
        (["--state-bins", '{"avg_order_value": [2, 1]}'], "expected rising bin edges"),
        (["--state-bins", "2,1"], "state_bins: "),
    ],
)
def test_an_impossible_setting_ends_with_2_and_a_list(options, words, capsys):
    assert main(["run", *options]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Known settings: as_of, budget" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        (["efect=1"], "expected some of effect, sleeping_dogs, "),
        (["seed=1"], "came ['seed']"),
        (["gamma=.9", "overlap=0.6"], "expected overlap between 0 and 0.5, came 0.6"),
        (["delay_days=1.5"], "dial delay_days: Input should be a valid integer"),
        (["confounding"], "dial confounding: Input should be a valid number"),
        (["effect=nan"], "expected effect of 0 or more, came nan"),
    ],
)
def test_an_impossible_dial_of_a_world_ends_with_2(dials, words, nowhere, tmp_path, capsys):
    assert main(["benchmark", "-o", str(tmp_path / "out"), "--dial", *dials, *nowhere]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["run"], ["rollback"], ["export", "--as-of", "2024-07-29"]])
def test_without_connections_it_says_how_to_name_them(command, nowhere, tmp_path, capsys):
    output = ["-o", str(tmp_path / "x.csv")] if "export" in command else []
    assert main([*command, *output, *nowhere]) == 2
    message = capsys.readouterr().err
    assert "AIRFLOW_CONN_WINBACK_WAREHOUSE=postgres://" in message
    assert "winback demo" in message


def test_an_unreachable_warehouse_ends_with_1(nowhere, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AIRFLOW_CONN_WINBACK_WAREHOUSE", UNREACHABLE)
    file = tmp_path / "x.csv"
    assert main(["export", "--as-of", "2024-07-29", "-o", str(file), *nowhere]) == 1
    message = capsys.readouterr().err
    assert "127.0.0.1:1/shop does not answer" in message
    assert "secret" not in message
    assert not file.exists()


def test_export_writes_the_coupons_of_the_date(shop, tmp_path):
    """Oracle: the table itself; `none` rows are nothing to send."""
    file = tmp_path / "coupons.csv"
    assert main(["export", "--as-of", shop.as_of, "-o", str(file)]) == 0
    with open(file, newline="") as lines:
        written = list(csv.DictReader(lines))
    rows = shop.query(
        "select decision_id, customer_id, coupon_id, expected_cost, reason "
        "from winback.recommendations where coupon_id <> 'none' order by customer_id"
    )
    assert [
        (r["decision_id"], r["customer_id"], r["coupon_id"], float(r["expected_cost"]), r["reason"])
        for r in written
    ] == rows
    assert len(rows) > 0
    assert list(tmp_path.iterdir()) == [file]


def test_export_of_a_date_that_was_never_published_ends_with_1(shop, tmp_path, capsys):
    file = tmp_path / "coupons.csv"
    assert main(["export", "--as-of", "2023-01-01", "-o", str(file)]) == 1
    assert "expected recommendations for 2023-01-01, found none" in capsys.readouterr().err
    assert not file.exists()


def test_export_into_a_folder_that_does_not_exist_ends_with_2(shop, tmp_path, capsys):
    file = tmp_path / "nowhere" / "coupons.csv"
    assert main(["export", "--as-of", shop.as_of, "-o", str(file)]) == 2
    assert f"{file} cannot be written: No such file or directory" in capsys.readouterr().err


def test_rollback_without_an_earlier_version_ends_with_1(shop, capsys):
    assert main(["rollback"]) == 1
    assert "expected a previous Q-table to go back to, found none" in capsys.readouterr().err
