"""Settings: one pydantic model per subsystem, from which flags, environment variables and docs are generated.

Each portion defines its own ``settings.py``::

    class FrontendSettings(Settings):
        section = "frontend"

        http_port: int = setting(8000, env=("DYN_HTTP_PORT",), flags=("--http-port",))
        \"\"\"Port of the OpenAI API; 0 takes a free one.\"\"\"

Precedence: flag > environment > file > default. An empty environment variable counts as not set.
"""

from dynamo.config.loading import load_settings, read_config_file
from dynamo.config.options import settings_from_flags, settings_options
from dynamo.config.reference import settings_table
from dynamo.config.settings import SettingInfo, Settings, setting, setting_infos

__all__ = [
    "SettingInfo",
    "Settings",
    "load_settings",
    "read_config_file",
    "setting",
    "setting_infos",
    "settings_from_flags",
    "settings_options",
    "settings_table",
]
