"""Many videos, one after the other or several at a time: a process and a store for each."""
