"""MLflow, fed from result folders. Importing this package does not import mlflow."""

from .background import Background, background
from .where import enabled, repo_root, tracking_uri

__all__ = ["Background", "background", "enabled", "repo_root", "tracking_uri"]
