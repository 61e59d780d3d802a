"""Data: reads files and tables into `Interactions`, and splits them into train, valid and test."""

from jaxrec.data import datasets as datasets
from jaxrec.data import readers as readers
from jaxrec.data import splits as splits
from jaxrec.data import synthetic as synthetic
