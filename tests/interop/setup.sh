#!/bin/sh
# Makes gRPC's own interop programs runnable: builds grpc-go's, fetches grpc-java's, both at pinned versions.
# In: the languages wanted (default: all). Out: target/interop/run/{go,java}-{client,server}, and nothing in the source tree.
# A language whose inputs have not changed is left alone, which needs no network. Changes nothing outside of
# target/interop, but for the package managers' own download caches.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/interop/run"
target=$(cd "$target" && pwd)
out=$target/interop

# need COMMAND PACKAGE: fails with the cure where a command is missing.
need() {
    command -v "$1" >/dev/null || {
        echo "setup.sh: no $1 on this machine; on Debian: apt-get install $2" >&2
        exit 2
    }
}

# launcher NAME LINE: how a program is run.
launcher() {
    # A proxy of this machine is not for pods.
    printf '#!/bin/sh\nunset http_proxy https_proxy grpc_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY\n%s\n' "$2" >"$out/run/$1.new"
    chmod +x "$out/run/$1.new"
    mv "$out/run/$1.new" "$out/run/$1"
}

setup_go() {
    need go "golang-go (1.26 or newer)"
    GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOBIN=$out/go go -C "$here/go" install tool
    for part in client server; do
        launcher "go-$part" "exec '$out/go/$part' \"\$@\""
    done
}

setup_java() {
    need java default-jdk-headless
    need mvn maven
    rm -rf "$out/java"
    mvn --batch-mode --quiet -Dstyle.color=never --file "$here/java/pom.xml" -Dout="$out/java" process-classes >&2
    # Each case is a process of its own that lives for a second: what makes it start faster.
    java="exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '$out/java/lib/*'"
    launcher java-client "$java io.grpc.testing.integration.TestServiceClient \"\$@\""
    launcher java-server "$java io.grpc.testing.integration.TestServiceServer \"\$@\""
}

# make_once LANGUAGE: sets it up unless that was done with the same inputs; others who want the same wait.
make_once() (
    exec 9>"$out/$1.lock"
    flock 9
    inputs=$({ echo "$out"; find "$here/setup.sh" "$here/$1" -type f -print | sort | xargs sha256sum; } | sha256sum)
    [ "$inputs" != "$(cat "$out/$1.made" 2>/dev/null)" ] || exit 0
    echo "setting up the $1 interop programs" >&2
    rm -f "$out/$1.made"
    "setup_$1"
    echo "$inputs" >"$out/$1.made"
)

need flock util-linux
for language in ${*:-go java}; do
    case $language in
    go | java) make_once "$language" ;;
    *)
        echo "setup.sh: no interop programs in $language; there are go and java" >&2
        exit 2
        ;;
    esac
done
