"""Objects of Kubernetes held against its own schemas: kubernetes_objects.py FILE VERSION

FILE holds a JSON list of objects; printed is a JSON list of what is wrong with each, null where nothing is.
"""

import json
import sys

import kubernetes_validate


def problem(document, version):
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    except kubernetes_validate.SchemaNotFoundError as error:
        return f"no such kind: {error}"
    return None


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        objects = json.load(file)
    print(json.dumps([problem(each, sys.argv[2]) for each in objects]))
