# The quickstart in a container, on the CPU: docker build -t counterpoint . && docker run --rm counterpoint
FROM python:3.11-slim-bookworm

# Nothing that is trained needs root.
RUN useradd --create-home --home-dir /srv/counterpoint counterpoint
WORKDIR /srv/counterpoint

# The CPU build of torch is a tenth of the size; it has an index of its own. Before the sources are
# copied, so that a change of them does not fetch it again.
COPY requirements/constraints.txt requirements/constraints.txt
RUN pip install --no-cache-dir -c requirements/constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch

COPY pyproject.toml setup.py README.md CHANGELOG.md LICENSE ./source/
COPY src ./source/src
RUN pip install --no-cache-dir -c requirements/constraints.txt "./source[peft,report]" \
    && rm -r source

USER counterpoint
ENTRYPOINT ["counterpoint"]
CMD ["quickstart"]
