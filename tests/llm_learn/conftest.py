"""The fixtures that tests of the package and of chapters share."""

from package_fixtures import *  # noqa: F403
