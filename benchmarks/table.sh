#!/usr/bin/env bash
# The table of the README: SmolLM2 by rounding, GPTQ and PB-LLM at several settings, all on the same windows.
#
#   benchmarks/table.sh CALIBRATION_TEXT EVALUATION_TEXT FOLDER [WINDOWS]
#
# Finished models and finished windows are kept, so an interrupted run goes on where it was.
set -euo pipefail
data=$(realpath "$1") text=$(realpath "$2") folder=$3 windows=${4:-10}
mkdir -p "$folder"

make() { # name, recipe, settings...
  local out="$folder/$1" recipe=$2
  shift 2
  [ -d "$out" ] || bitwright quantize smollm2 --recipe "$recipe" "${@/#/--set=}" --data "$data" --tokens 10240 -o "$out"
}

for bits in 4 3 2; do
  make "rtn$bits" rtn "format.bits_per_code=$bits"
  make "gptq$bits" gptq "format.bits_per_code=$bits"
done
for share in 30 20 10; do
  make "pb$share-8" pb-llm "format.by.share=0.$share"
  make "pb$share-4" pb-llm "format.by.share=0.$share" format.salient_bits=4
done
make pb20-8-magnitude pb-llm format.by.share=0.20 format.by.by=magnitude

cd "$folder"
bitwright compare smollm2 rtn4 gptq4 rtn3 gptq3 rtn2 gptq2 \
  pb30-8 pb20-8 pb20-8-magnitude pb10-8 pb30-4 pb20-4 pb10-4 \
  --text "$text" --windows "$windows" --markdown "table-$windows.md" --plot "table-$windows.png"
