"""The types that Equipoise's parts share: the custom resources, and what passes between operator and sidecar.

`tenant` and `policy` are the custom resources as people write them. `sidecar_config` is what the operator
pushes, `sidecar_state` what it reads back, `certificates` how a sidecar gets its identity. `crd` turns the
first two into CustomResourceDefinitions. Nothing here does I/O or knows any other package of this project.
"""
