"""A deployment whose processes are users of their own, with the rights of config/deploy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freshscore.config.loading import load_settings
from freshscore.config.settings import Settings as LoadedSettings
from freshscore.invalidation.deployment import opened
from tests.freshscore.shared_deployment import SharedDeployment
from tests.security.access_rules import ROLES, Role

Settings = dict[str, Any]


class Guarded(SharedDeployment):
    """roles: what each kind of process is given beside the settings; none: all are one user."""

    def __init__(
        self, folder: Path, given: Settings, roles: tuple[Mapping[Role, Settings], ...] = ()
    ) -> None:
        super().__init__(folder, given)
        self.roles: dict[Role, Settings] = {role: {} for role in ROLES}
        for one in roles:
            self.play(one)

    def play(self, roles: Mapping[Role, Settings]) -> None:
        """Give processes more settings."""
        for role, given in roles.items():
            self.roles[role] = self.roles[role] | given

    def given_to(self, role: Role) -> Settings:
        """The settings of such a process."""
        return self.given | self.roles[role]

    @property
    def settings(self) -> LoadedSettings:
        """As a scorer gets them, which may send what is consumed."""
        return load_settings("shared", settings=self.given_to("scorer"))

    def run(self, *words: object, **further: Any) -> int:
        """As it is, by the user that the command is for."""
        role: Role = "consumer" if words[0] == "consume" else "operator"
        own = {name.replace(".", "__"): value for name, value in self.roles[role].items()}
        return super().run(*words, **own | further)

    def opened(self) -> Any:
        """As it is, by an operator."""
        return opened(load_settings("shared", settings=self.given_to("operator")))
