"""Films by row, and what of them crosses to a worker."""

import pickle

import numpy as np

from chexseg.irnet.films import OtherFilms, TrainFilms
from tests.irnet.six_films import SIZE, TASKS


def test_workers_get_a_small_pickle(labelled_run, six_films):
    for films in (TrainFilms(labelled_run), OtherFilms(labelled_run, TASKS, six_films / "data", SIZE)):
        expected = films(3)
        sent = pickle.dumps(films)
        assert len(sent) < 5000
        for one, other in zip(pickle.loads(sent)(3), expected, strict=True):
            assert np.array_equal(one, other)
