"""Which language model an agent uses: by an argument, the mapping, or the environment, in this order.

A model is a name of pydantic-ai (``anthropic:claude-…``), whose provider finds its key in the environment,
or any name at a base URL that speaks OpenAI's chat-completions protocol.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringfence.agents.interpolation import interpolate
from ringfence.core.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic_ai.models import Model

MODEL_VARIABLE = "RINGFENCE_AGENT_MODEL"
URL_VARIABLE = "RINGFENCE_AGENT_BASE_URL"
KEY_VARIABLE = "RINGFENCE_AGENT_API_KEY"
"""The key for `URL_VARIABLE`. No other key is ever sent there."""

INSTALL = "pip install 'ringfence[agent]' (in a clone: uv pip install -e '.[agent]')"


@dataclass(frozen=True)
class ModelChoice:
    """A model's name; with `base_url`, at a server that speaks OpenAI's protocol and may want `api_key`."""

    name: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


def choose_model(
    agent: str,
    configured: str | None,
    environ: Mapping[str, str],
    *,
    model: str | None = None,
    base_url: str | None = None,
) -> ModelChoice:
    """The model of the agent called `agent`; `configured` is what the mapping says.

    A `ConfigurationError` says exactly what to set when there is none.
    """
    name = model
    if not name and configured:
        name = interpolate(configured, environ, f"agents.{agent}.model")
    name = name or environ.get(MODEL_VARIABLE)
    url = base_url or environ.get(URL_VARIABLE) or None
    if not name:
        raise ConfigurationError(_what_to_set(agent))
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"the model's base URL {url!r} must start with http:// or https://")
    return ModelChoice(name, url, environ.get(KEY_VARIABLE) or None if url else None)


def _what_to_set(agent: str) -> str:
    return (
        f"no language model is configured for the agent {agent}. Set one of:\n"
        f"  {MODEL_VARIABLE}=PROVIDER:NAME (or --model PROVIDER:NAME) and the provider's key, for example\n"
        f"    {MODEL_VARIABLE}=openai:gpt-5 with OPENAI_API_KEY, or\n"
        f"    {MODEL_VARIABLE}=anthropic:claude-sonnet-4-5 with ANTHROPIC_API_KEY and "
        f"pip install 'pydantic-ai-slim[anthropic]';\n"
        f"  {MODEL_VARIABLE}=NAME and {URL_VARIABLE}=http://127.0.0.1:11434/v1 (or --model NAME --base-url "
        f"URL)\n"
        f"    for a server that speaks OpenAI's protocol; its key, if it wants one, in {KEY_VARIABLE};\n"
        f"  agents.{agent}.model in a file named by RINGFENCE_TOOL_MAPPING."
    )


def build_model(choice: ModelChoice) -> "Model":
    """The choice as pydantic-ai's model. Needs pydantic-ai, and the library of the model's provider."""
    try:
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.models import infer_model

        try:
            return infer_model(choice.name) if choice.base_url is None else _at_url(choice)
        except (UserError, ValueError) as error:
            raise ConfigurationError(f"the model {choice.name!r} cannot be used: {error}") from error
    except ImportError as error:
        raise ConfigurationError(f"the model {choice.name!r} cannot be used: {error}; {INSTALL}") from error


def _at_url(choice: ModelChoice) -> "Model":
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    # The client insists on a key; servers without keys ignore it.
    provider = OpenAIProvider(base_url=choice.base_url, api_key=choice.api_key or "none")
    return OpenAIChatModel(choice.name.removeprefix("openai:"), provider=provider)
