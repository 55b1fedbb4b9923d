# genmodels in a container, on the CPU or on NVIDIA GPUs.
#
#   docker build -t genmodels .                                  # CPU
#   docker build -t genmodels:cuda --build-arg DEVICE=cuda .     # GPUs
#   docker run --rm -v "$PWD:/work" --user "$(id -u)" genmodels sample toyfaces/vae --out faces.png
#   docker run --rm -v "$PWD:/work" --user "$(id -u)" --gpus all genmodels:cuda train dit --output runs/dit
#   docker run --rm -p 127.0.0.1:7860:7860 genmodels app --host 0.0.0.0
#
# The files of a command are those of /work. EXTRAS are extras of pyproject.toml, with commas.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim
# On the CPU, torch comes from PyTorch's index of wheels without CUDA; on PyPI, its wheels contain CUDA.
ARG DEVICE=cpu
ARG EXTRAS=app,onnx
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN case "$DEVICE" in \
        cpu) index="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
        cuda) index="" ;; \
        *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir $index -c /wheels/constraints.txt "$(echo /wheels/*.whl)[$EXTRAS]" \
    && rm -r /wheels

# Any user can run it (--user): the home folder, which has the caches, belongs to everybody.
RUN mkdir -m 1777 /work /home/genmodels
ENV HOME=/home/genmodels PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["genmodels"]
CMD ["--help"]
