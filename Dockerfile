# CUDA image of medgen; runs as an unprivileged user.
#   docker build -t medgen . && docker run --gpus all -v "$PWD":/work medgen run cxr/quickstart
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv git \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home medgen && mkdir /opt/medgen /work && chown medgen:medgen /opt/medgen /work
USER medgen
WORKDIR /opt/medgen
ENV VIRTUAL_ENV=/opt/medgen/venv PATH=/opt/medgen/venv/bin:$PATH
RUN python3 -m venv $VIRTUAL_ENV

COPY --chown=medgen pyproject.toml README.md LICENSE ./
COPY --chown=medgen medgen medgen
COPY --chown=medgen recipes recipes
COPY --chown=medgen checkpoints checkpoints
RUN pip install --no-cache-dir -e '.[gpu]'

WORKDIR /work
ENTRYPOINT ["medgen"]
CMD ["--help"]
