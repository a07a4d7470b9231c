#!/usr/bin/env bash
# Has Open MPI start a command on two machines, PER_MACHINE processes on each (1): two network namespaces with names of their own, and a link between
# them of 10 ms each way and 1 Gbit/s. As root; needs ip (iproute2), unshare, and python3 or a kernel with netem.
#
#   xtask/two-machines/run.sh target/debug/lowbit train digits-preresnet8-w2a2 --out runs/two-machines
#
# DELAY_MS and RATE_MBIT change the link.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
delay=${DELAY_MS:-10} rate=${RATE_MBIT:-1000} per=${PER_MACHINE:-1}
scratch=$(mktemp -d)
link=

clean_up() {
    [ -z "$link" ] || kill "$link" 2>/dev/null || true
    for machine in one two; do ip netns delete "lowbit-$machine" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap clean_up EXIT

for machine in one two; do ip netns add "lowbit-$machine"; done
if tc -n lowbit-one qdisc add dev lo root netem delay 1ms 2>/dev/null; then
    tc -n lowbit-one qdisc delete dev lo root
    ip link add link0 netns lowbit-one type veth peer name link1 netns lowbit-two
    for end in "one link0 1" "two link1 2"; do
        read -r machine device number <<<"$end"
        ip -n "lowbit-$machine" addr add "10.77.0.$number/24" dev "$device"
        ip -n "lowbit-$machine" link set "$device" up
        ip -n "lowbit-$machine" link set lo up
        tc -n "lowbit-$machine" qdisc add dev "$device" root netem delay "${delay}ms" rate "${rate}mbit" limit 100000
    done
    echo "link: netem, $delay ms each way, $rate Mbit/s" >&2
else
    python3 "$here/link.py" lowbit-one 10.77.0.1 lowbit-two 10.77.0.2 "$delay" "$rate" >"$scratch/link" &
    link=$!
    until grep -q ready "$scratch/link"; do sleep 0.1; done
    echo "link: link.py (this kernel has no netem), $delay ms each way, $rate Mbit/s" >&2
fi

# On a machine of its own a command has its name, and files of its own for what Open MPI keeps.
cat >"$scratch/on" <<END
#!/usr/bin/env bash
machine=\$1
shift
mkdir -p "$scratch/\$machine"
exec ip netns exec "lowbit-\$machine" unshare --uts -- env TMPDIR="$scratch/\$machine" \
    bash -c 'hostname "\$0"; exec "\$@"' "\$machine" "\$@"
END
# Open MPI knows machines by their addresses.
cat >"$scratch/agent" <<END
#!/usr/bin/env bash
case \$1 in 10.77.0.1) machine=one ;; *) machine=two ;; esac
shift
[ "\$1" != -x ] || shift
# As a remote shell has it.
exec "$scratch/on" "\$machine" bash -c "\$*"
END
chmod +x "$scratch/on" "$scratch/agent"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
"$scratch/on" one mpirun -n $((2 * per)) --host "10.77.0.1:$per,10.77.0.2:$per" --mca plm_rsh_agent "$scratch/agent" --mca plm rsh \
    --mca btl tcp,self,vader --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
    --bind-to none "$@"
