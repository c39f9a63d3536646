"""`lspm <stage> CONFIG [a.b=value ...]`: every stage, progress, and the next command to type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lspm_ray.errors import UserError

app = typer.Typer(
    name="lspm",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="From a labelled corpus and a pretrained model to a served answer under a certificate.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=value]...", help="settings that win over the file")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything and say what would be done, then stop")]
FromSweep = Annotated[
    bool, typer.Option("--from-sweep", help="with the winner's settings of `lspm tune`, which runs first if need be")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]

_CODES = {"user": 2, "interrupted": 130}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `lspm` command. Exits with 2 on a user's mistake, after saying what and where."""
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_CODES["user"])
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from here", file=sys.stderr)
        sys.exit(_CODES["interrupted"])


def _stage_command(name: str, help_text: str) -> None:
    def command(
        config: ConfigPath,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        quiet: Quiet = False,
        from_sweep: FromSweep = False,
    ) -> None:
        from lspm_ray.commands.run import run

        run(config, _with_sweep(overrides, from_sweep), name, dry_run=dry_run, quiet=quiet)

    command.__doc__ = help_text
    app.command(name, help=help_text)(command)


def _with_sweep(overrides: list[str] | None, from_sweep: bool) -> list[str]:
    return [*(overrides or []), *(["tune.use_winner=true"] if from_sweep else [])]


_stage_command("documents", "Read, clean and deduplicate raw text.")
_stage_command("tokenizer", "Train a tokenizer on the documents, or take one over.")
_stage_command("blocks", "Tokenise the documents and pack them into blocks.")
_stage_command("pretrain", "Pretrain a model on the blocks, data-parallel.")
_stage_command("tune", "Search for the best settings and model; interrupted, the same command goes on.")
_stage_command("prepare", "Read, clean, split and tokenise the corpus.")
_stage_command("finetune", "Fine-tune the pretrained model, data-parallel.")
_stage_command("compress", "Make every compressed variant.")
_stage_command("profile", "Measure quality, latency, throughput and memory of every variant here.")
_stage_command("select", "Choose what to serve and certify it.")
_stage_command("gears", "Plan points, replicas and batch sizes for a range of request rates.")
_stage_command("run", "All stages, and the report.")


@app.command("status")
def status_command(config: ConfigPath, overrides: Overrides = None, from_sweep: FromSweep = False) -> None:
    """Show stages, artifacts and digests, and what to type next."""
    from lspm_ray.commands.run import status

    status(config, _with_sweep(overrides, from_sweep))


@app.command("verify")
def verify_command(
    what: Annotated[str, typer.Argument(metavar="CONFIG_OR_URI", help="YAML file, or directory or URI of a plan")],
    overrides: Overrides = None,
    resample: Annotated[
        int, typer.Option("--resample", min=0, metavar="N", help="repeat the procedure N times on the held-out rows")
    ] = 0,
    every: Annotated[bool, typer.Option("--all", help="show all checks, not only the promises and what fails")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Recompute every number of plan and certificate. Exits with 0 (holds), 1 (does not) or 2 (cannot be read)."""
    from lspm_ray.commands.verify import verify_command

    raise typer.Exit(verify_command(what, overrides or [], runs=resample, every=every, as_json=as_json))


@app.command("certify")
def certify_command(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    labels: Annotated[str, typer.Option("--labels", help="file of fresh labelled rows, columns as in `data`")],
    alpha: Annotated[float | None, typer.Option("--alpha", help="risk level; that of the plan by default")] = None,
    quiet: Quiet = False,
) -> None:
    """Certify the plan again on fresh labelled traffic; the next `lspm serve` serves that version."""
    from lspm_ray.commands.certify import certify

    certify(config, overrides or [], labels, alpha, quiet=quiet)


@app.command("serve")
def serve_command(
    config: ConfigPath,
    overrides: Overrides = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="return when the endpoint is ready; `lspm stop` ends it")
    ] = False,
    render: Annotated[bool, typer.Option("--render", help="only write serve.yaml, for `serve deploy`")] = False,
    dry_run: DryRun = False,
    from_sweep: FromSweep = False,
) -> None:
    """Deploy the plan on Ray Serve."""
    from lspm_ray.commands.serve import serve

    serve(config, _with_sweep(overrides, from_sweep), detach=detach, render_only=render, dry_run=dry_run)


@app.command("stop")
def stop_command(config: ConfigPath, overrides: Overrides = None) -> None:
    """Stop what `lspm serve --detach` started."""
    from lspm_ray.commands.serve import stop

    stop(config, overrides or [])


@app.command("audit")
def audit_command(
    config: ConfigPath,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="draw the evidence over time (.svg or .png)")] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="show this many disagreements")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="everything there is, as JSON")] = False,
    from_sweep: FromSweep = False,
) -> None:
    """Say whether live traffic keeps the certificate; exits with 1 once it is revoked."""
    from lspm_ray.commands.audit import audit

    given = _with_sweep(overrides, from_sweep)
    if not audit(config, given, plot=plot, samples=samples, as_json=as_json):
        raise typer.Exit(1)


@app.command("predict")
def predict_command(
    config: ConfigPath,
    rest: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=value]... [TEXT]...", help="settings over the file's, then texts to answer"),
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Parquet, CSV or JSON Lines file of texts")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="where the answers to --file go (.jsonl or .parquet)")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="answer this many rows of the test split")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="no server: run the plan with Ray Data")] = False,
    url: Annotated[str | None, typer.Option("--url", help="endpoint; the configured one by default")] = None,
    from_sweep: FromSweep = False,
) -> None:
    """Ask the endpoint, or run the same plan over a file without one."""
    from lspm_ray.commands.predict import Request, predict, split_overrides

    overrides, texts = split_overrides(rest or [])
    request = Request(texts=texts, file=file, out=out, sample=sample, offline=offline, url=url)
    predict(config, _with_sweep(overrides, from_sweep), request)


if __name__ == "__main__":
    main()
