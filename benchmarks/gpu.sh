#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: build, test, sanitize, probe, measure, train, and one JSON of it all.
#
#     benchmarks/gpu.sh                     all stages
#     benchmarks/gpu.sh build test          some, in this order; their results join those of earlier calls
#     benchmarks/gpu.sh --dry-run [STAGE]   what would be done
#     benchmarks/gpu.sh --merge FILE ...    start from another gpu.json, e.g. of a call whose folder is gone
#
# Nothing is installed and nothing downloaded. A stage that fails does not stop the later ones; the exit status is 1 if any
# failed. What a stage lacks (a tool, a package, the GPU) is recorded as a skip with its reason.
#
# Environment:
#     PYTHON          interpreter with torch, setuptools >= 77, ninja, pybind11 (default: python3)
#     OUT             folder of gpu.json, gpu.png and the logs (default: benchmarks/results/<card>)
#     WORK            folder of intermediate files (default: build/gpu)
#     DEVICE          cuda (default), or cpu to try the script itself with tiny sizes
#     SCENE           folder with transforms.json for `train` and the NeRF step (default: the procedural scene)
#     TRAIN_SECONDS   training time (default: 60)        TRAIN_ARGS   more options of `hashgrid nerf`
#     BENCH_SECONDS   time per case (default: 4)         BENCH_ARGS   more options, e.g. --no-compile
#     BENCHES         suites (default: all of `hashgrid bench`)
#     TESTS           files for pytest (default: tests)  TEST_JOBS    processes, where pytest-xdist is installed
#     SANITIZERS      tools of compute-sanitizer (default: memcheck racecheck)
#     TOTAL_SECONDS   of this call (default: 1500); LIMIT_<STAGE>, LIMIT_SUITE: of a stage, of one benchmark
#     COMMIT          what was built, where there is no git
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
STAGES=(build test sanitize probe bench train plot)
export PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} WORK=${WORK:-$ROOT/build/gpu} DRY_RUN=${DRY_RUN:-}
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
BENCHES=${BENCHES:-hash_encode mlp hash_encode_mlp encodings composite march_rays adam_step nerf_step render sdf_step}
SANITIZERS=${SANITIZERS:-memcheck racecheck}
TESTS=${TESTS:-tests}
SKIPPED=77
SETUPTOOLS=77  # the first to know pyproject.toml's SPDX licence

# ---- stages: each runs in a process of its own, its output is its log ------------------------------------------------

stage_build() {
  [[ $DEVICE == cpu ]] && skip "DEVICE=cpu takes the extension as it is"
  need torch setuptools ninja pybind11
  local version
  version=$("$PYTHON" -c "import setuptools; print(setuptools.__version__)" || echo 0)
  ((${version%%.*} >= SETUPTOOLS)) || skip "setuptools must be $SETUPTOOLS or newer for pyproject.toml, got $version"
  run env HASHGRID_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$(capability)}" \
    "$PYTHON" setup.py build_ext --inplace --build-temp "$WORK/temp"
  run "$PYTHON" -m hashgrid info
}

stage_test() {
  need pytest
  local options=(-q -rs --continue-on-collection-errors -p no:cacheprovider --junitxml "$WORK/test/junit.xml")
  local jobs=${TEST_JOBS:-$(($(nproc) / 2))}
  if ((jobs > 1)) && has xdist; then options+=(-n "$((jobs > 8 ? 8 : jobs))" --dist loadfile); fi
  if ! has hypothesis; then
    local file
    for file in $(grep -lE '^(from|import) hypothesis' tests/*.py); do
      echo "left out, hypothesis is not installed: $file"
      options+=("--ignore=$file")
    done
  fi
  run mkdir -p "$WORK/test"
  # The kernels emulated on the host need no GPU, and minutes.
  options+=("--ignore-glob=*/test_cuda_on_host*.py" -k "not cuda_on_host and not emulated")
  run "$PYTHON" -m pytest "${options[@]}" $TESTS
}

stage_sanitize() {
  [[ $DEVICE == cpu ]] && skip "compute-sanitizer watches a GPU"
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
  [[ -n $sanitizer || -n $DRY_RUN ]] || skip "compute-sanitizer is not installed"
  sanitizer=${sanitizer:-compute-sanitizer}
  # Our kernels alone: PyTorch's need no checking and would take most of the time.
  local only=() help tool failed=0
  help=$("$sanitizer" --help 2>/dev/null || true)
  if [[ $help == *--kernel-name* ]]; then only=(--kernel-name kns=hashgrid)
  elif [[ $help == *--kernel-regex* ]]; then only=(--kernel-regex kns=hashgrid); fi
  run mkdir -p "$WORK/sanitize"
  run rm -f "$WORK"/sanitize/*.log
  compile tests/cuda/planted_faults.cu "$WORK/sanitize/planted_faults"
  for tool in $SANITIZERS; do
    # Every allocation on its own, so that a step beyond a tensor's end is one.
    run_to "$WORK/sanitize/planted_$tool.log" \
      "$sanitizer" --tool "$tool" "${only[@]}" "$WORK/sanitize/planted_faults" || true
    run_to "$WORK/sanitize/$tool.log" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" \
      --error-exitcode 9 --report-api-errors no "${only[@]}" "$PYTHON" tests/cuda/sanitize.py || failed=1
  done
  return $failed
}

stage_probe() {
  [[ $DEVICE == cpu ]] && skip "the probe needs a GPU"
  run mkdir -p "$WORK/probe"
  compile tests/cuda/mma_probe.cu "$WORK/probe/mma_probe"
  local status=0
  run_to "$WORK/probe/probe.json" "$WORK/probe/mma_probe" || status=$?
  ((status != 3)) || skip "no GPU with bf16 tensor cores"
  return $status
}

stage_bench() {
  local -A packages=([nerf_step]="safetensors${SCENE:+ imageio}" [render]="${SCENE:+imageio}" [sdf_step]="igl skimage")
  local suite options package reason left_out=() failed=()
  # shellcheck disable=SC2206
  local suites=($BENCHES)
  run mkdir -p "$WORK/bench"
  for suite in "${suites[@]}"; do
    package=$(first_missing ${packages[$suite]:-})
    if [[ -n $package ]]; then
      reason="the Python package $package is not installed"
      left_out+=("$suite: $reason")
      echo "left out, $reason: $suite"
      if [[ -z $DRY_RUN ]]; then
        leave_out "$suite" "$reason"
        continue
      fi
    fi
    options=(--device "$DEVICE" --out "$WORK/bench" --no-plot --seconds "${BENCH_SECONDS:-4}")
    [[ $DEVICE == cpu ]] && options=(--out "$WORK/bench" --no-plot --no-compile --tiny --seconds 0)
    [[ $suite =~ ^(nerf_step|render)$ && -n ${SCENE:-} ]] && options+=(--scene "$SCENE")
    # shellcheck disable=SC2206
    options+=(${BENCH_ARGS:-})
    # In the stage's process group, so that the stage's own limit ends it, too.
    run timeout --foreground -k 10 "${LIMIT_SUITE:-240}" "$PYTHON" -m "hashgrid.bench.$suite" "${options[@]}" ||
      failed+=("$suite ($?)")
  done
  ((${#failed[@]} == 0)) || {
    echo "failed, with exit status: ${failed[*]}"
    return 1
  }
  ((${#left_out[@]} < ${#suites[@]})) || skip "$(IFS=";" && echo "${left_out[*]}")"
}

stage_train() {
  need imageio safetensors tqdm PIL matplotlib
  local options=(--time-limit "${TRAIN_SECONDS:-60}" --out "$WORK/train" --no-video)
  [[ $DEVICE == cpu ]] || options+=(--device "$DEVICE")
  # shellcheck disable=SC2206
  run "$PYTHON" -m hashgrid nerf ${SCENE:+"$SCENE"} "${options[@]}" ${TRAIN_ARGS:-}
  run cp "$WORK/train/results.json" "$OUT/nerf_results.json"
  run cp "$WORK/train/psnr_over_time.png" "$OUT/psnr_over_time.png"
}

stage_plot() {
  need matplotlib
  run "$PYTHON" benchmarks/gpu_report.py plot --json "$OUT/gpu.json" --png "$OUT/gpu.png"
}

limit_of() {
  local -A limits=([build]=420 [test]=540 [sanitize]=420 [probe]=90 [bench]=580 [train]=300 [plot]=60)
  local given=LIMIT_${1^^}
  echo "${!given:-${limits[$1]}}"
}

# ---- what the stages are made of -------------------------------------------------------------------------------------

run() {
  echo "+ $*"
  [[ -n $DRY_RUN ]] || "$@"
}

run_to() {  # FILE COMMAND...: output to FILE and to the log
  local file=$1
  shift
  echo "+ $* > $file"
  [[ -n $DRY_RUN ]] || "$@" 2>&1 | tee "$file"
}

skip() {
  echo "skip: $*"
  [[ -n $DRY_RUN ]] && return 0
  exit $SKIPPED
}

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

need() {
  local module
  for module in "$@"; do has "$module" || skip "the Python package $module is not installed"; done
}

first_missing() {
  local module
  for module in "$@"; do has "$module" || { echo "$module"; break; }; done
}

leave_out() {  # SUITE REASON: the reason in place of results, unless an earlier call has left some
  grep -qs "\"benchmark\": \"$1\"" "$OUT/gpu.json" ||
    printf '{"benchmark": "%s", "skipped": "%s", "cases": []}\n' "$1" "$2" >"$WORK/bench/$1.json"
}

capability() {
  if [[ -n $DRY_RUN ]]; then echo CARD; else
    "$PYTHON" -c "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))"
  fi
}

compile() {  # SOURCE PROGRAM
  local nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
  command -v "$nvcc" >/dev/null || nvcc=/usr/local/cuda/bin/nvcc
  [[ -n $DRY_RUN || -x $(command -v "$nvcc") ]] || skip "nvcc is not installed"
  run "$nvcc" -std=c++17 -O2 "-arch=sm_$(capability | tr -d .)" -I csrc -I tests/host -o "$2" "$1"
}

# ---- the loop over stages --------------------------------------------------------------------------------------------

if [[ ${1:-} == --inner ]]; then
  "stage_$2"
  exit
fi

chosen=() merge=
while (($#)); do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --merge) merge=${2:?--merge takes a file}; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *)
      if [[ " ${STAGES[*]} " != *" $1 "* ]]; then
        echo "gpu.sh: unknown stage '$1'; there are: ${STAGES[*]}" >&2
        exit 2
      fi
      chosen+=("$1")
      ;;
  esac
  shift
done
((${#chosen[@]})) || chosen=("${STAGES[@]}")

if [[ -n $DRY_RUN ]]; then
  export OUT=${OUT:-benchmarks/results/CARD}
  for stage in "${chosen[@]}"; do
    echo "== $stage, at most $(limit_of "$stage") s"
    "stage_$stage"
  done
  exit 0
fi

mkdir -p "$WORK"
if ! "$PYTHON" -m hashgrid.bench.environment --device "$DEVICE" >"$WORK/environment.json" 2>"$WORK/environment.log"; then
  tail -3 "$WORK/environment.log" >&2
  echo "gpu.sh: $PYTHON cannot describe DEVICE=$DEVICE; is there a PyTorch with CUDA and a GPU? DEVICE=cpu tries the script" >&2
  exit 2
fi
card=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["card"])' "$WORK/environment.json")
export OUT=${OUT:-benchmarks/results/$card}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
[[ -z $(git status --porcelain --untracked-files=no 2>/dev/null) ]] || commit+=-dirty
if [[ -n $merge ]]; then cp "$merge" "$OUT/gpu.json"; fi

any_failed=0
for stage in "${chosen[@]}"; do
  limit=$(limit_of "$stage") left=$((${TOTAL_SECONDS:-1500} - SECONDS))
  ((limit <= left)) || limit=$((left > 1 ? left : 1))
  echo "== $stage, at most $limit s, log in $OUT/$stage.log"
  [[ $stage == plot ]] || rm -rf "${WORK:?}/$stage"
  begin=$(date +%s.%N) status=0
  timeout -k 20 "$limit" bash "${BASH_SOURCE[0]}" --inner "$stage" >"$OUT/$stage.log" 2>&1 || status=$?
  # It reads the stage's results too: errors that a tool only reports make the stage fail.
  "$PYTHON" benchmarks/gpu_report.py record --json "$OUT/gpu.json" --stage "$stage" --status "$status" \
    --begin "$begin" --end "$(date +%s.%N)" --log "$OUT/$stage.log" --work "$WORK" --commit "$commit" || any_failed=1
done
echo "== $OUT/gpu.json"
exit $any_failed
