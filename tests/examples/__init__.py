"""The specs and programs of examples/, on models that train in a second."""
