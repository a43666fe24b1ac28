# How the scripts beside this one start poprun. VIPU_SERVER and PARTITION name the machine's partition; POPRUN_HOST a
# host, and POPRUN_FLAGS anything else.

if [ -z "${POPLAR_ENGINE_OPTIONS:-}" ]; then
    POPLAR_ENGINE_OPTIONS='{"opt.enableMultiAccessCopies":"false","target.hostSyncTimeout":900}'
fi
: "${IPUOF_VIPU_API_TIMEOUT:=3600}" "${POPLAR_LOG_LEVEL:=WARN}"
export POPLAR_ENGINE_OPTIONS IPUOF_VIPU_API_TIMEOUT POPLAR_LOG_LEVEL
forwarded="OPAL_PREFIX LD_LIBRARY_PATH PATH PYTHONPATH CPATH IPUOF_VIPU_API_TIMEOUT POPLAR_LOG_LEVEL POPLAR_SDK_ENABLED
    POPLAR_ENGINE_OPTIONS MASTER_ADDR MASTER_PORT"

# start_replicas INSTANCES REPLICAS IPUS_PER_REPLICA RECIPE DATA [FLAGS...]
start_replicas() {
    command -v poprun >/dev/null || { echo "poprun is not found; enable the Poplar SDK first" >&2; exit 2; }
    instances=$1 replicas=$2 ipus=$3 recipe=$4 data=$5
    shift 5
    # shellcheck disable=SC2086 # each name and each flag is a word of its own
    exec poprun --num-instances="$instances" --num-replicas="$replicas" --ipus-per-replica="$ipus" \
        ${VIPU_SERVER:+"--vipu-server-host=$VIPU_SERVER"} ${PARTITION:+"--vipu-partition=$PARTITION"} \
        ${POPRUN_HOST:+"--host=$POPRUN_HOST"} --vipu-server-timeout=3600 ${POPRUN_FLAGS:-} \
        --mpi-local-args="$(printf -- '-x %s ' $forwarded)" \
        python3 main_dino.py --config "configs/ipu/$recipe.yaml" --data_path "$data" "$@"
}
