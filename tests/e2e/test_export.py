"""Bundles on the command line."""

import pandas as pd


def test_a_run_becomes_a_bundle_that_predicts(small, cli, tmp_path):
    out, data = tmp_path / "bundle", small / "test.parquet"
    assert data.is_file()
    done = cli("export", small / "run", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert first.endswith(f"written to {out}: {size:,} bytes")
    assert "largest difference from the trainer over" in second
    for source, name in ((small / "run", "trainer"), (out, "bundle")):
        done = cli("predict", source, "--data", data, "--out", tmp_path / f"{name}.parquet")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    trainer, bundle = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("trainer", "bundle"))
    pd.testing.assert_frame_equal(trainer, bundle, rtol=1e-5, atol=1e-5)


def test_what_is_wrong_is_told(small, cli, tmp_path):
    cases = [
        (("export", small / "run", "--out", small), "holds other files, and no bundle"),
        (("predict", small / "run", "--compiled", "--data", "a", "--out", "b"), "is no bundle, and has no native code"),
    ]
    for arguments, message in cases:
        done = cli(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]
