"""``ringfence kill``: end sandboxes of a server."""

import click


@click.command("kill")
@click.argument("sandbox_ids", nargs=-1, required=True, metavar="SANDBOX...")
def command(sandbox_ids: tuple[str, ...]) -> None:
    """End sandboxes, running or paused; nothing of them is left.

    The server is named by RINGFENCE_URL and RINGFENCE_API_KEY; with E2B_API_KEY alone it is E2B's cloud. Exit
    status 1 when one of them is not there.
    """
    import httpx
    from e2b import Sandbox
    from e2b.exceptions import AuthenticationException, SandboxException

    from ringfence.cli.elsewhere import sdk_options

    options = sdk_options()
    missing = []
    for sandbox_id in sandbox_ids:
        try:
            killed = Sandbox.kill(sandbox_id, **options)
        except (SandboxException, AuthenticationException, httpx.HTTPError) as error:
            raise click.ClickException(f"{sandbox_id}: {error or type(error).__name__}") from error
        if killed:
            click.echo(f"{sandbox_id}: killed")
        else:
            missing.append(sandbox_id)
    if missing:
        raise click.ClickException(f"no such sandbox: {', '.join(missing)}")
