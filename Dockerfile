# maskwright without torch: `predict`, `complete` and `demo` with exported models; see docs/container.md.
ARG PYTHON=docker.io/library/python:3.13-slim

# The bundled model as ONNX files. torch stays in this stage.
FROM ${PYTHON} AS model
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir torch torchvision --index-url ${TORCH_INDEX}
WORKDIR /source
COPY . .
RUN /venv/bin/pip install --no-cache-dir '.[export]'
RUN /venv/bin/maskwright export deep-mac-tiny --out deep-mac-tiny.onnx \
    && mkdir /models && cp deep-mac-tiny*.onnx src/maskwright/weights/deep-mac-tiny/LICENSE-weights /models

# The package, and what these three commands need.
FROM ${PYTHON} AS package
COPY docker/requirements.txt .
RUN python3 -m venv /opt/maskwright && /opt/maskwright/bin/pip install --no-cache-dir -r requirements.txt
WORKDIR /source
COPY . .
RUN /opt/maskwright/bin/pip install --no-cache-dir --no-deps . \
    && rm -r /opt/maskwright/lib/python3*/site-packages/pip*

FROM ${PYTHON}
COPY --from=model /models /models
COPY --from=package /opt/maskwright /opt/maskwright
ENV PATH=/opt/maskwright/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /data
EXPOSE 7863
ENTRYPOINT ["maskwright"]
CMD ["--help"]
