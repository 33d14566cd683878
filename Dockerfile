# A model on a CPU, served: docker build -t detr . && docker run -p 127.0.0.1:8000:8000 -e DETR_TOKEN -v "$PWD/runs/mine:/model:ro" detr
# See docs/serve.md.

FROM python:3.12-slim AS build
RUN python -m venv /venv
# PyTorch's CPU build, which is a tenth of that with CUDA, first: the package then has what it needs
RUN /venv/bin/pip install --no-cache-dir torch==2.14.1 torchvision==0.29.1 --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY modeling_detr modeling_detr
COPY configs configs
# the CPU build needs none of CUDA's packages, and its version has an addition (2.14.1+cpu) that the pins lack
RUN grep -Ev '^(torch|torchvision|nvidia-|cuda-|triton)' constraints.txt > /constraints.txt \
 && /venv/bin/pip install --no-cache-dir '.[serve,export]' --constraint /constraints.txt

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 detr
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER detr
WORKDIR /home/detr
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Without DETR_TOKEN in the environment, it ends with a message that says how to make one
CMD ["detr", "serve", "/model", "--host", "0.0.0.0"]
