# shellcheck shell=bash
# How the node starts: its state folder, its namespaces, and every program with its flags, as
# early as it can do something. Read by `node`.

ADDRESS=10.200.0.1                       # the node's own, on a wire that leads nowhere
DNS=10.96.0.10
VOLUMES=24                               # one for each installation of a chart; none is used twice

# start [PREFIX..]: PREFIX is what the first process is started through.
start() {
  local importing
  BEGAN=$(date +%s%3N)
  make_state
  begin_namespaces "$@"
  begin_store
  import_images &
  importing=$!
  begin_api
  begin_controllers
  wait $importing || explain "the images cannot be imported"
  begin_node
  ready 60 "node" kubectl wait --for=condition=Ready node/node1 --timeout=2s
  ready 60 "service account" kubectl get serviceaccount default
  ready 60 "DNS" kubectl -n kube-system wait --for=condition=Available --timeout=2s \
    deployment/coredns
}

# ---- the state folder ----

make_state() {
  mkdir "$NODE"/{log,cni,kubelet,private,private/{run,log,lib,work},tmp,tunables,volumes}
  mkdir -m 0700 "$NODE"/{conf,pki}
  make_cgroups
  configure
  make_volumes
  {
    "$BIN/kubeadm" init phase certs all --config "$NODE/conf/kubeadm.yaml"
    "$BIN/kubeadm" init phase kubeconfig all --config "$NODE/conf/kubeadm.yaml" \
      --kubeconfig-dir "$NODE/conf"
  } >"$NODE/log/kubeadm.log" 2>&1 || explain "kubeadm cannot make the certificates"
}

make_cgroups() {
  local group hierarchy hierarchies=() controller file
  group=$(cgroup "$NODE")
  # All of version 2, or each one of version 1. A link is another name of one.
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    hierarchies=(/sys/fs/cgroup)
  else
    for hierarchy in /sys/fs/cgroup/*; do
      [ -L "$hierarchy" ] || [ ! -e "$hierarchy/cgroup.procs" ] || hierarchies+=("$hierarchy")
    done
  fi
  [ ${#hierarchies[@]} -gt 0 ] || fail "no cgroups are mounted below /sys/fs/cgroup"
  for hierarchy in "${hierarchies[@]}"; do
    mkdir "$hierarchy/$group"
  done
  # In version 2 a group has the controllers that were switched on above it, and kubelet wants all
  # that it knows. In ours too, which keeps systemd from switching off what its units do not use.
  # They stay on, as after any container runtime: by then somebody else may rely on them.
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null); do
    case $controller in
      cpu | cpuset | hugetlb | memory | pids)
        for file in /sys/fs/cgroup{,"/$group"}/cgroup.subtree_control; do
          echo "+$controller" >"$file" ||
            fail "$controller cannot be switched on in $file: is this the inside of a container?"
        done
        ;;
    esac
  done
  # In version 1 a new cpuset may use nothing.
  for file in cpuset.cpus cpuset.mems; do
    [ ! -e "/sys/fs/cgroup/cpuset/$file" ] ||
      cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$group/$file"
  done
}

# The files of conf/, with what is only known now.
configure() {
  local file text key
  key=$(head -c 32 /dev/urandom | base64)
  for file in "$HERE"/conf/*; do
    text=$(<"$file")
    text=${text//@NODE@/$NODE}
    text=${text//@BIN@/$BIN}
    text=${text//@ADDRESS@/$ADDRESS}
    text=${text//@DNS@/$DNS}
    text=${text//@CGROUP@/$(cgroup "$NODE")}
    text=${text//@KEY@/$key}
    echo "$text" >"$NODE/conf/$(basename "$file")"
  done
  mv "$NODE/conf/pods.conflist" "$NODE/cni/10-pods.conflist"
}

# Volumes of the kind `local`, which honours fsGroup (hostPath does not). Nothing makes them on
# demand, and one that was released is not given out again: so there are many.
make_volumes() {
  local number folder
  for ((number = 1; number <= VOLUMES; number++)); do
    folder=$NODE/volumes/$number
    mkdir -m 0770 "$folder"
    chown 65532:65532 "$folder"
    cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-$number}
spec:
  storageClassName: local
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: {path: $folder}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node1]}]
END
  done >>"$NODE/conf/cluster.yaml"
}

# ---- programs ----

begin_namespaces() { # [PREFIX..]
  NODE=$NODE ADDRESS=$ADDRESS setsid "$@" \
    unshare --mount --net --pid --uts --ipc --fork --kill-child=SIGKILL "$HERE/inside" \
    >"$NODE/log/inside.log" 2>&1 </dev/null &
  echo $! >"$NODE/log/inside.pid"
  disown
  ready 10 "namespaces" test -s "$NODE/first"
}

begin_store() {
  begin containerd "$BIN/containerd" --config "$NODE/conf/containerd.toml"
  # What this node holds need not survive the machine.
  begin etcd "$BIN/etcd" --data-dir "$NODE/etcd" --unsafe-no-fsync
}

import_images() {
  wait_for 30 ctr version && load "$IMAGES"/*.tar >"$NODE/log/images.log" 2>&1
}

begin_api() {
  local pki=$NODE/pki
  begin apiserver "$BIN/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address="$ADDRESS" \
    --service-cluster-ip-range=10.96.0.0/16 \
    --allow-privileged \
    --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$pki/ca.crt" \
    --tls-cert-file="$pki/apiserver.crt" \
    --tls-private-key-file="$pki/apiserver.key" \
    --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/sa.pub" \
    --service-account-signing-key-file="$pki/sa.key" \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" \
    --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$pki/front-proxy-client.crt" \
    --proxy-client-key-file="$pki/front-proxy-client.key" \
    --encryption-provider-config="$NODE/conf/encryption.yaml" \
    --audit-policy-file="$NODE/conf/audit.yaml" \
    --audit-log-path="$NODE/log/audit.jsonl" \
    --audit-log-maxsize=1000
  # A look at the port first: kubectl takes a tenth of a second of the same two cores.
  ready 60 "API server's port" inside bash -c "</dev/tcp/$ADDRESS/6443"
  ready 60 "API server" kubectl get --raw /readyz
}

begin_controllers() {
  begin controller-manager "$BIN/kube-controller-manager" \
    --kubeconfig="$NODE/conf/controller-manager.conf" \
    --leader-elect=false \
    --use-service-account-credentials \
    --service-account-private-key-file="$NODE/pki/sa.key" \
    --root-ca-file="$NODE/pki/ca.crt" \
    --cluster-signing-cert-file="$NODE/pki/ca.crt" \
    --cluster-signing-key-file="$NODE/pki/ca.key" \
    --kube-api-qps=200 --kube-api-burst=400
  begin scheduler "$BIN/kube-scheduler" \
    --kubeconfig="$NODE/conf/scheduler.conf" \
    --leader-elect=false
  kubectl apply -f "$NODE/conf/cluster.yaml" >"$NODE/log/cluster.log" 2>&1 ||
    explain "the cluster's own objects are refused"
}

begin_node() {
  begin kubelet "$BIN/kubelet" \
    --config="$NODE/conf/kubelet.yaml" \
    --kubeconfig="$NODE/conf/kubelet.conf" \
    --root-dir="$NODE/kubelet" \
    --cert-dir="$NODE/pki/kubelet" \
    --hostname-override=node1 \
    --node-ip="$ADDRESS"
  begin proxy "$BIN/kube-proxy" --config="$NODE/conf/proxy.yaml"
}

# begin NAME CMD..: a program of the node, with a log of its own; it ends with the namespaces.
begin() {
  local name=$1
  shift
  setsid nsenter -t "$(first)" -m -n -p -u -i --wd=/ \
    env -i PATH="$BIN:/usr/sbin:/usr/bin:/sbin:/bin" HOME="$NODE" "$@" \
    >"$NODE/log/$name.log" 2>&1 </dev/null &
  echo $! >"$NODE/log/$name.pid"
  disown
}

# ---- waiting ----

# wait_for SECONDS CMD..: polls CMD, by the clock.
wait_for() {
  local end=$(($(date +%s) + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || return 1
    ended >/dev/null && return 1
    sleep 0.1
  done
}

# ready SECONDS WHAT CMD..: the same, says when, and gives up with the logs. The limits are
# generous, since a compiler may have both cores.
ready() {
  wait_for "$1" "${@:3}" || explain "$2 not ready within $1 s$(ended)"
  echo "node: $2 ready after $(($(date +%s%3N) - BEGAN)) ms" >&2
}

# Names the first of the node's programs that has ended; fails when all live.
ended() {
  local file
  for file in "$NODE"/log/*.pid; do
    if [ -e "$file" ] && [ -z "$(started "$(<"$file")")" ]; then
      echo "; $(basename "$file" .pid) has ended"
      return
    fi
  done
  return 1
}

# explain WHAT: ends the start. The state goes with it, so that its logs are shown now.
explain() {
  local log
  for log in "$NODE"/log/*.log; do
    echo "---- $(basename "$log")" >&2
    tail -n 12 "$log" >&2
  done
  fail "$1"
}
