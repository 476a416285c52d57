"""What of a server's settings is the engine's."""

from ringfence.engine.egress.settings import NetworkSettings
from ringfence.engine.settings import EngineSettings, default_cache_dir
from ringfence.server.settings import ServeSettings


def engine_settings(settings: ServeSettings, port: int) -> EngineSettings:
    """The settings of the engine of a server that listens on `port`, which no sandbox may reach."""
    return EngineSettings(
        templates=settings.templates,
        cache_dir=settings.cache_dir or default_cache_dir(),
        runtime_dir=settings.runtime_dir,
        snapshot_dir=settings.data_dir / "snapshots",
        volume_dir=settings.data_dir / "volumes",
        unbounded_volumes=settings.unbounded_volumes,
        authority_dir=settings.data_dir / "egress",
        max_sandboxes=settings.max_sandboxes + settings.max_paused,
        total_memory_mb=settings.total_memory_mb,
        total_cpus=settings.total_cpus,
        total_pids=settings.total_pids,
        rotate_after=settings.rotate_after,
        rotate_minutes=settings.rotate_minutes,
        log_refusals=settings.seccomp_log,
        fresh_kernels=settings.fresh_kernels,
        gradual=settings.gradual_warmup,
        isolation=settings.isolation,
        gvisor_platform=settings.gvisor_platform,
        network=NetworkSettings(
            default=settings.network_default,
            ceiling=settings.network_ceiling,
            allow_private=settings.network_allow_private,
            hosts=settings.network_hosts,
            extra_roots=str(settings.network_roots.absolute()) if settings.network_roots else "",
            own_ports=(port,),
            connections=settings.network_connections,
            connections_per_second=settings.network_connections_per_second,
            package_cache_mb=settings.package_cache_mb,
        ),
        debug=settings.log_level == "DEBUG",
    )
