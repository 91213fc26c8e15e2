"""What several test modules share."""

from tests.irnet.six_films import labelled_run, relation_run, six_films, six_films_environment  # noqa: F401
