#!/bin/sh
# Makes the clients runnable: installs pinned dependencies, generates the protobuf code, builds.
# In: the languages wanted (default: all). Out: target/clients/run/LANGUAGE, one command each, and nothing in the source tree.
# A language whose inputs have not changed is left alone, which needs no network. Changes nothing outside of
# target/clients, but for the package managers' own download caches.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/clients/run"
target=$(cd "$target" && pwd)
out=$target/clients
proto=$(cd "$here/../../loadtest/proto" && pwd)

# need COMMAND PACKAGE: fails with the cure where a command is missing.
need() {
    command -v "$1" >/dev/null || {
        echo "setup.sh: no $1 on this machine; on Debian: apt-get install $2" >&2
        exit 2
    }
}

# launcher LANGUAGE LINE…: how the client is run.
launcher() {
    language=$1
    shift
    # A proxy of this machine is not for pods.
    printf '#!/bin/sh\nunset http_proxy https_proxy grpc_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY\n' >"$out/run/$language.new"
    printf '%s\n' "$@" >>"$out/run/$language.new"
    chmod +x "$out/run/$language.new"
    mv "$out/run/$language.new" "$out/run/$language"
}

setup_python() {
    need python3 "python3 python3-venv"
    python3 -c 'import ensurepip' 2>/dev/null || need python3-venv python3-venv
    rm -rf "$out/python"
    python3 -m venv "$out/python/venv"
    "$out/python/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r "$here/python/requirements.txt"
    mkdir "$out/python/gen"
    "$out/python/venv/bin/python" -m grpc_tools.protoc -I"$proto" --python_out="$out/python/gen" --grpc_python_out="$out/python/gen" echo.proto
    launcher python 'export PYTHONDONTWRITEBYTECODE=1' "export PYTHONPATH='$out/python/gen'" \
        "exec '$out/python/venv/bin/python' '$here/python/client.py' \"\$@\""
}

setup_go() {
    need go "golang-go (1.26 or newer)"
    make_once python # protoc comes with grpcio-tools
    export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
    GOBIN=$out/go/bin go -C "$here/go" install tool
    module=sluice.dev/tests/clients/go
    "$out/python/venv/bin/python" -m grpc_tools.protoc -I"$proto" \
        --plugin="$out/go/bin/protoc-gen-go" --go_out="$out/go" --go_opt=module=$module \
        --plugin="$out/go/bin/protoc-gen-go-grpc" --go-grpc_out="$out/go" --go-grpc_opt=module=$module echo.proto
    # The generated package is laid over the module, so that it need not be in the tree.
    pair() { printf '"%s": "%s"' "$here/go/echopb/$1" "$out/go/echopb/$1"; }
    printf '{"Replace": {%s, %s}}\n' "$(pair echo.pb.go)" "$(pair echo_grpc.pb.go)" >"$out/go/overlay.json"
    # Static, so that it runs in an image of its own, too.
    CGO_ENABLED=0 go -C "$here/go" build -buildvcs=false -overlay "$out/go/overlay.json" -o "$out/go/bin/echo" .
    launcher go "exec '$out/go/bin/echo' \"\$@\""
}

setup_node() {
    need node nodejs
    need npm npm
    mkdir -p "$out/node"
    cp "$here/node/package.json" "$here/node/package-lock.json" "$out/node/"
    npm ci --prefix "$out/node" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
    launcher node "export NODE_PATH='$out/node/node_modules'" "export ECHO_PROTO='$proto/echo.proto'" \
        "exec node '$here/node/client.js' \"\$@\""
}

setup_java() {
    need javac default-jdk-headless
    need mvn maven
    mvn --batch-mode --quiet -Dstyle.color=never --file "$here/java/pom.xml" -Dout="$out/java" -Dproto="$proto" process-classes >&2
    launcher java "exec java -cp '$out/java/classes:$out/java/lib/*' dev.sluice.tests.echo.Main \"\$@\""
}

setup_rust() {
    need cargo "rustup, or cargo 1.95 or newer"
    cargo build --quiet --locked --manifest-path "$here/rust/Cargo.toml" --target-dir "$target"
    launcher rust "exec '$target/debug/echo-client' \"\$@\""
}

# make_once LANGUAGE: sets it up unless that was done with the same inputs; others who want the same wait.
make_once() (
    exec 9>"$out/$1.lock"
    flock 9
    inputs=$({ echo "$here $out"; find "$here/setup.sh" "$here/$1" "$proto" -type f -print | sort | xargs sha256sum; } | sha256sum)
    [ "$inputs" != "$(cat "$out/$1.made" 2>/dev/null)" ] || exit 0
    echo "setting up the $1 client" >&2
    rm -f "$out/$1.made"
    "setup_$1"
    echo "$inputs" >"$out/$1.made"
)

need flock util-linux
for language in ${*:-go python node java rust}; do
    case $language in
    go | python | node | java | rust) make_once "$language" ;;
    *)
        echo "setup.sh: no client in $language; there are go, python, node, java, rust" >&2
        exit 2
        ;;
    esac
done
