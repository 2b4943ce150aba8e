"""The configuration: one typed object, from `config.yml`, `--set` and the environment."""

from pipeline.config.keys import Config
from pipeline.config.load import load_config
from pipeline.config.render import render_config

__all__ = ["Config", "load_config", "render_config"]
