# The page of dshmp, on the CPU; docs/fleet.md says how to build and run it.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /source

# torch alone first: the build for CPUs is a tenth of the one for GPUs, and it changes more rarely than what follows
RUN pip install --no-deps torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[web]"

# nothing of the package can be changed by who runs it; a folder of the host may be mounted on /home/dshmp
RUN useradd --create-home --uid 1000 dshmp
USER dshmp
WORKDIR /home/dshmp
EXPOSE 7860
CMD ["dshmp", "serve", "--host", "0.0.0.0"]
