"""Which model all replicas of an application answer with, how another one takes its place, and what refuses it.

One actor, the keeper, knows the agreed bundle and has its files; every replica is a member that listens to it. A change
is decided and proved once by the keeper, prepared by every member, and taken by all of them together.
"""
