#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: build, probe, sanitize, test, measure, train, and one JSON of it all.
#
#     benchmarks/gpu.sh                     all stages
#     benchmarks/gpu.sh build test          some, in this order; their results join those of earlier calls
#     benchmarks/gpu.sh --ten-minutes       what a machine rented for ten minutes can show; all but `train`
#     benchmarks/gpu.sh --dry-run [STAGE]   what would be done, and how long each stage may take
#     benchmarks/gpu.sh --merge FILE ...    start from another gpu.json, e.g. of a call whose folder is gone
#
# Nothing is installed and nothing downloaded. A stage that fails does not stop the later ones; the exit status is 1 if
# any failed. What a stage lacks (a tool, a package, the GPU) is recorded as a skip with its reason. A stage may take
# its limit and what the stages before it have left of theirs.
#
# Environment, which --ten-minutes gives other defaults:
#     PYTHON          interpreter with torch, setuptools, ninja, pybind11 (default: python3)
#     OUT             folder of gpu.json, gpu.png, logs.tar.gz, libraries.tar.gz (default: benchmarks/results/<card>)
#     WORK            folder of intermediate files and logs (default: build/gpu)
#     DEVICE          cuda (default), or cpu to try the script itself with tiny sizes
#     SCENE           folder with transforms.json for `train` and the NeRF step (default: the procedural scene)
#     TRAIN_SECONDS   training time (default: 60)        TRAIN_ARGS   more options of `hashgrid nerf`
#     BENCH_SECONDS   time per case (default: 4)         BENCH_ARGS   more options, e.g. --no-compile
#     BENCHES         suites (default: all of `hashgrid bench`)
#     TESTS           files for pytest (default: those with a test that needs a GPU)
#     TEST_JOBS       files at a time (default: half of the cores, at most 8)
#     SANITIZERS      tools of compute-sanitizer (default: memcheck synccheck racecheck)
#     SANITIZE_SIZES  problem sizes (default: those of tests/cuda/sanitize.py)
#     RACECHECK_OPS   ops for racecheck, the slowest (default: all)
#     TOTAL_SECONDS   of this call (default: 1500)
#     LIMIT_<STAGE>   of a stage; LIMIT_SUITE, LIMIT_FILE of a benchmark, of a file of tests
#     COMMIT          what was built, where there is no git
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SELF=$ROOT/benchmarks/gpu.sh
cd "$ROOT"
STAGES=(build probe sanitize test bench train plot)
SKIPPED=77 NO_TESTS=5  # exit statuses: a stage's, pytest's

# 560 s: the limits, and ten seconds for what is around the stages. Set before the defaults below.
ten_minutes() {
  : "${LIMIT_BUILD:=150}" "${LIMIT_PROBE:=20}" "${LIMIT_SANITIZE:=125}" "${LIMIT_TEST:=150}" "${LIMIT_BENCH:=85}"
  : "${LIMIT_PLOT:=15}" "${LIMIT_SUITE:=40}" "${LIMIT_FILE:=130}" "${TOTAL_SECONDS:=560}"
  : "${SANITIZE_SIZES=257}" "${RACECHECK_OPS=hash_encode mlp radiance_mlp composite}"
  : "${BENCHES:=hash_encode mlp}" "${BENCH_SECONDS:=1}" "${BENCH_ARGS=--no-compile}"
  : "${MAX_JOBS:=$(nproc)}"  # a virtual machine may show less free memory than it gets
  export LIMIT_BUILD LIMIT_PROBE LIMIT_SANITIZE LIMIT_TEST LIMIT_BENCH LIMIT_PLOT LIMIT_SUITE LIMIT_FILE TOTAL_SECONDS
  export SANITIZE_SIZES RACECHECK_OPS BENCHES BENCH_SECONDS BENCH_ARGS MAX_JOBS
}
if [[ " $* " == *" --ten-minutes "* ]]; then ten_minutes; fi

export PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} WORK=${WORK:-$ROOT/build/gpu} DRY_RUN=${DRY_RUN:-}
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[[ $PYTHON != [!/]*/* ]] || PYTHON=$ROOT/$PYTHON  # the build runs in a folder of its own
BENCHES=${BENCHES:-hash_encode mlp hash_encode_mlp encodings composite march_rays adam_step nerf_step render sdf_step surface_step}
SANITIZERS=${SANITIZERS:-memcheck synccheck racecheck}

# ---- stages: each runs in a process of its own, its output is its log ------------------------------------------------

stage_build() {
  [[ $DEVICE == cpu ]] && skip "DEVICE=cpu takes the extension as it is"
  need torch setuptools ninja pybind11
  # In a folder without pyproject.toml, as setuptools before 77 refuses its licence. What is built lands in hashgrid/.
  local source=$WORK/source scripts
  run mkdir -p "$source"
  run ln -sfn "$ROOT/setup.py" "$ROOT/csrc" "$ROOT/hashgrid" "$source/"
  # Without the command ninja, which lies beside Python, torch would compile one file after the other.
  scripts=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_path('scripts'))")
  run cd "$source"
  run env HASHGRID_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$(capability)}" PATH="$scripts:$PATH" \
    "$PYTHON" setup.py build_ext --inplace --build-temp "$WORK/temp"
  run cd "$ROOT"
  run tar czf "$OUT/libraries.tar.gz" hashgrid/_C*.so
  run "$PYTHON" -m hashgrid info
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

stage_sanitize() {
  [[ $DEVICE == cpu ]] && skip "compute-sanitizer watches a GPU"
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
  [[ -n $sanitizer || -n $DRY_RUN ]] || skip "compute-sanitizer is not installed"
  sanitizer=${sanitizer:-compute-sanitizer}
  # Our kernels alone: PyTorch's need no checking and would take most of the time.
  local only=() help tool tools options limit failed=0
  help=$("$sanitizer" --help 2>/dev/null || true)
  if [[ $help == *--kernel-name* ]]; then only=(--kernel-name kns=hashgrid)
  elif [[ $help == *--kernel-regex* ]]; then only=(--kernel-regex kns=hashgrid); fi
  run mkdir -p "$WORK/sanitize"
  run rm -f "$WORK"/sanitize/*.log
  compile tests/cuda/planted_faults.cu "$WORK/sanitize/planted_faults"
  read -ra tools <<<"$SANITIZERS"
  local left=${#tools[@]}
  for tool in "${tools[@]}"; do
    run_to "$WORK/sanitize/planted_$tool.log" \
      timeout -s INT -k 5 15 "$sanitizer" --tool "$tool" "${only[@]}" "$WORK/sanitize/planted_faults" || true
    # Its share of the time left. sanitize.py stops before that, or the tool would not say what it has found.
    limit=$((($(seconds_left) - 5) / left)) left=$((left - 1))
    ((limit > 20)) || limit=20
    [[ -z $DRY_RUN ]] || STAGE_END=$((STAGE_END - limit))
    options=(--seconds $((limit - 20)) ${SANITIZE_SIZES:+--sizes $SANITIZE_SIZES})
    # shellcheck disable=SC2206
    [[ $tool == racecheck && -n ${RACECHECK_OPS:-} ]] && options+=(--only $RACECHECK_OPS)
    # Every allocation on its own, so that a step beyond a tensor's end is one.
    run_to "$WORK/sanitize/$tool.log" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -s INT -k 5 "$limit" \
      "$sanitizer" --tool "$tool" --error-exitcode 9 --report-api-errors no "${only[@]}" \
      "$PYTHON" tests/cuda/sanitize.py "${options[@]}" || failed=1
  done
  return $failed
}

stage_test() {
  need pytest
  local file unit files units=() unable='a^' jobs=$(($(nproc) / 2)) failed=0
  has hypothesis || unable='^(from|import) hypothesis'
  # The longest first.
  # shellcheck disable=SC2206
  files=(${TESTS:-$(grep -lE '^(@|pytestmark).*mark\.(gpu|every_kernel)\b' tests/test_*.py | xargs ls -S)})
  for file in "${files[@]}"; do
    if grep -qE "$unable" "$file"; then
      echo "left out, hypothesis is not installed: $file"
      continue
    fi
    units+=("$file")
    if grep -q '^@.*mark\.asynchronous' "$file"; then units+=("$file:asynchronous"); fi
  done
  run mkdir -p "$WORK/test"
  jobs=${TEST_JOBS:-$((jobs > 8 ? 8 : jobs > 1 ? jobs : 1))}
  echo "${#units[@]} files, $jobs at a time"
  if [[ -n $DRY_RUN ]]; then
    for unit in "${units[@]}"; do test_file "$unit"; done
  else
    for unit in "${units[@]}"; do echo "none 0" >"$(test_name "$unit").status"; done
    printf '%s\n' "${units[@]}" | xargs -P "$jobs" -I{} bash "$SELF" --inner test_file {} || failed=1
  fi
  return $failed
}

# FILE or FILE:asynchronous, in a process of its own: a kernel that traps takes the CUDA context of its process with it,
# one that hangs its process. Launches wait for their kernels, so that the one that fails is the one named; not so in
# tests of streams and graphs, which that would change.
test_file() {
  local file=${1%:*} name marks=gpu blocking=1 limit=${LIMIT_FILE:-300} left status=0
  name=$(test_name "$1") left=$(($(seconds_left) - 15))
  [[ $DEVICE == cpu ]] && marks="not full"
  if [[ $1 == *:asynchronous ]]; then
    marks+=" and asynchronous" blocking=0
  else
    marks+=" and not asynchronous"
  fi
  ((left > 0)) || { echo "no time left: $1"; return 1; }
  ((limit <= left)) || limit=$left
  local options=(-o addopts= -v -rs --tb short --color no --maxfail 3 -o "faulthandler_timeout=$((limit / 3))")
  run_in "$name.log" env CUDA_LAUNCH_BLOCKING=$blocking timeout --foreground -s INT -k 10 "$limit" \
    "$PYTHON" -m pytest "${options[@]}" -p no:cacheprovider --junitxml "$name.xml" -m "$marks" "$file" || status=$?
  [[ -n $DRY_RUN ]] && return
  echo "$status $SECONDS" >"$name.status"
  echo "$1: exit status $status after $SECONDS s"
  ((status == 0 || status == NO_TESTS))
}

test_name() { echo "$WORK/test/$(basename "${1%:*}" .py)$([[ $1 != *:* ]] || echo ".${1#*:}")"; }

stage_bench() {
  local -A packages=([nerf_step]="safetensors${SCENE:+ imageio}" [render]="${SCENE:+imageio}" [sdf_step]="igl skimage" [surface_step]="safetensors")
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
  local -A limits=([build]=420 [probe]=90 [sanitize]=420 [test]=540 [bench]=580 [train]=300 [plot]=60)
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

run_in() {  # FILE COMMAND...: output to FILE alone
  local file=$1
  shift
  echo "+ $* > $file"
  [[ -n $DRY_RUN ]] || "$@" >"$file" 2>&1
}

seconds_left() { echo $((STAGE_END - $(date +%s))); }

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
  "${@:2}"
  exit
fi

chosen=() merge=
while (($#)); do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --ten-minutes) STAGES=(build probe sanitize test bench plot) ;;
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

total=${TOTAL_SECONDS:-1500}
if [[ -n $DRY_RUN ]]; then
  export OUT=${OUT:-benchmarks/results/CARD}
  sum=0
  for stage in "${chosen[@]}"; do
    limit=$(limit_of "$stage") sum=$((sum + limit))
    echo "== $stage, at most $limit s"
    STAGE_END=$(($(date +%s) + limit)) "stage_$stage"
  done
  echo "== all stages, at most $sum s; this call, $total s"
  exit 0
fi

mkdir -p "$WORK/logs"
WORK=$(cd "$WORK" && pwd)
if ! timeout -k 5 60 "$PYTHON" -m hashgrid.bench.environment --device "$DEVICE" >"$WORK/environment.json" \
  2>"$WORK/environment.log"; then
  tail -3 "$WORK/environment.log" >&2
  echo "gpu.sh: $PYTHON cannot describe DEVICE=$DEVICE; is there a PyTorch with CUDA and a GPU?" \
    "DEVICE=cpu tries the script" >&2
  exit 2
fi
card=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["card"])' "$WORK/environment.json")
export OUT=${OUT:-benchmarks/results/$card}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
[[ -z $(git status --porcelain --untracked-files=no 2>/dev/null) ]] || commit+=-dirty
if [[ -n $merge ]]; then cp "$merge" "$OUT/gpu.json"; fi

any_failed=0 planned=$SECONDS
for stage in "${chosen[@]}"; do
  planned=$((planned + $(limit_of "$stage")))
  limit=$(((planned < total ? planned : total) - SECONDS))
  ((limit > 1)) || limit=1
  log=$WORK/logs/$stage.log
  echo "== $stage, at most $limit s, log in $log"
  [[ $stage == plot ]] || rm -rf "${WORK:?}/$stage"
  begin=$(date +%s.%N) status=0
  STAGE_END=$(($(date +%s) + limit)) timeout -k 10 "$limit" bash "$SELF" --inner "stage_$stage" >"$log" 2>&1 ||
    status=$?
  # It reads the stage's results too: errors that a tool only reports make the stage fail.
  "$PYTHON" benchmarks/gpu_report.py record --json "$OUT/gpu.json" --stage "$stage" --status "$status" \
    --begin "$begin" --end "$(date +%s.%N)" --limit "$limit" --log "$log" --work "$WORK" --commit "$commit" ||
    any_failed=1
  # After every stage: a call that is stopped from outside leaves those of the stages before.
  (cd "$WORK" && find . -name '*.log' -o -name '*.xml' -o -name probe.json) |
    tar czf "$WORK/logs.tar.gz" -C "$WORK" -T - && mv "$WORK/logs.tar.gz" "$OUT/logs.tar.gz"
done
echo "== $OUT/gpu.json"
exit $any_failed
