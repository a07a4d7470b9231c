#!/bin/sh
# Stands in for lowbit: says what a small training would say, without one. What it does is set by STUB_ variables.
echo "$*" >>"$STUB_LOG"
arguments=" $* "
has() { case "$arguments" in *"$1"*) true ;; *) false ;; esac }
fail() { echo "error: $2" >&2; exit "$1"; }

origin='{"lowbit":"0.1.0","revision":"'${STUB_REVISION:-aaa}'","features":["flex"],"burn":"0.22.1","host":"h","n_threads":2,'
origin=$origin'"instruction_sets":["'${STUB_INSTRUCTIONS:-avx2}'"]}'
case "$1" in
--version)
    echo "$origin"
    ;;
data)
    n=1438 ok=true error=null
    case "$STUB_DATA" in
    missing) n=null ok=false error='"failed to find digits: put it into data/digits"' ;;
    differs) n=1000 ok=false ;;
    esac
    echo '{"name":"digits","ok":'$ok',"files":[],"splits":[{"split":"train","n_samples":'$n',"error":'$error'},' \
        '{"split":"test","n_samples":359,"error":null}]}'
    $ok || exit 6
    ;;
inspect)
    has epochz && fail 2 "unknown key train.epochz"
    train='{"epochs":'${STUB_EPOCHS:-16}',"eval_every":1,"norm_reestimation_batches":0}'
    echo '{"recipe":{"name":"'"$2"'","data":{"batch_size":64},"train":'$train'},"phases":[{"train":'$train'}]}'
    ;;
train)
    has "--device flex:0 " && fail 2 "no device is called \"flex:0\""
    run= resumed= or_resume=
    while [ $# -gt 0 ]; do
        case "$1" in
        --out) run=$2 ;;
        --resume) run=$2 resumed=1 ;;
        --or-resume) or_resume=1 ;;
        esac
        shift
    done
    [ -n "$resumed" ] && [ ! -e "$run/run.json" ] && fail 4 "$run is not a run directory"
    [ -z "$resumed$or_resume" ] && [ -e "$run/run.json" ] && fail 4 "run directory $run exists"
    [ -n "$STUB_FAIL" ] && has "$STUB_FAIL" && fail 5 "the loss is not finite"
    # As lowbit: the first signal lets it save, the second ends it.
    n_signals=0
    trap 'n_signals=$((n_signals + 1))' INT TERM
    mkdir -p "$run" && echo '{"origin":'"$origin"'}' >"$run/run.json"
    if [ -n "$STUB_SLOW" ] && has "$STUB_SLOW"; then
        while [ $n_signals = 0 ]; do sleep 0.02; done
        i=0
        while [ $n_signals = 1 ] && [ $i -lt "${STUB_SAVING:-10}" ]; do
            sleep 0.05
            i=$((i + 1))
        done
        if [ $n_signals = 1 ]; then touch "$run/saved"; else touch "$run/aborted"; fi
        exit 130
    fi
    printf '%s\n' '{"epoch":1,"test":{"top1":0.5}}' '{"epoch":2,"test":{"top1":0.9}}' >"$run/metrics.jsonl"
    echo '{"top1":0.9,"epochs":16,"seconds":2.0,"same_origin":true,"origin":'"$origin"'}' >"$run/result.json"
    echo '{"status":"complete","top1":0.9,"images_per_second":1000.0}'
    ;;
esac
