"""`reasoning-rpc sweep`: its lengths, its bytes and its compressions are those of an answer of that length."""

import json

import pytest
from conftest import fail, generate, succeed

OPTIONS = ["--interval", 32, "--window", 8, "--cache-dtype", "fp32"]


def sweep(model, *arguments):
    result = succeed("sweep", "--model", model, "--output", "json", *OPTIONS, *arguments)
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_and_compressions(tiny, batch):
    lengths = [16, 90, 300]
    found = sweep(
        tiny, "--lengths", "16,90,300", "--policies", "none,rpc,random:ratio=8", "--prompt-tokens", 20, "--batch", batch,
        "--rounds", 2,
    )  # fmt: skip
    assert [curve["policy"] for curve in found["curves"]] == ["none", "rpc", "random:ratio=8"]
    policies = [["none"], ["rpc"], ["random", "--ratio", 8]]
    for curve, (name, *more) in zip(found["curves"], policies):
        assert [point["length"] for point in curve["points"]] == lengths and curve["ended"] is None
        for point in curve["points"]:
            # Its last token is run, that of an answer is not.
            alone = generate(
                tiny, "--prompt-ids", ",".join(map(str, range(20))), "--max-tokens", point["length"] + 1, "--ignore-eos",
                "--temperature", 0, "--policy", name, *more, *OPTIONS,
            )["stats"]  # fmt: skip
            assert point["peak_bytes"] == batch * alone["cache_peak_bytes"]
            assert point["compressions"] == alone["compressions"]
            assert point["tokens_per_second"] > 0 and point["tokens_per_second_since"] > 0


def test_what_does_not_fit_is_said(tiny, tmp_path):
    page = tmp_path / "page.html"
    common = ["--lengths", "32,64,1024", "--prompt-tokens", 20, "--policies", "none,rpc"]
    room = sweep(tiny, "--lengths", "64", "--prompt-tokens", 20, "--policies", "none")["curves"][0]["points"][0]["peak_bytes"]
    found = sweep(tiny, *common, "--budget", 3 * room, "--html", page)
    none, rpc = found["curves"]
    assert [point["length"] for point in none["points"]] == [32, 64] and "1024 tokens: " in none["ended"]
    assert len(rpc["points"]) >= 2
    html = page.read_text()
    assert html.count("<svg") == 3 and "none was not measured at 1024 tokens" in html and "NaN" not in html
    # By default no longer than the context.
    text = succeed("sweep", "--model", tiny, "--policies", "rpc", "--prompt-tokens", 900, *OPTIONS).stdout.decode()
    assert "| rpc | 128 |" in text and "was not measured" not in text


def test_errors(tiny):
    common = ["sweep", "--model", tiny]
    for arguments, expected in [
        (["--lengths", "64,32"], ["--lengths", "ascend"]),
        (["--lengths", "0,32"], ["--lengths", "ascend"]),
        (["--batch", 0], ["--batch", "1 or more"]),
        (["--policies", "none,magic"], ["--policies: magic"]),
    ]:
        fail(2, *common, *arguments, expected=expected)
