"""The section `report` of the configuration."""

from pydantic import Field

from lspm_ray.config import Config


class ReportConfig(Config):
    """What the report shows of single rows.

    Attributes:
        exemplars: rows listed at most, those that most variants flip.
        texts: show how these rows begin. Texts may be private and reports are passed on: by default rows are named by
            id alone.
    """

    exemplars: int = Field(20, ge=0, le=1000)
    texts: bool = False
