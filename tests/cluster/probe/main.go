// The program in the cluster tests' own images. Without arguments it is the sandbox container of every pod: it does nothing.
//
//	probe serve ADDRESS   answers each HTTP request with the pod's name
//	probe get URL         prints the answer
//	probe api PATH        prints what the API server answers to the pod's ServiceAccount, over TLS
//	probe bulk KUBECONFIG WORKERS RATE
//	                      makes many requests to the API server, fast; not for pods (bulk.go)
//	probe store ETCD AUTHORITY CERTIFICATE KEY
//	                      writes many objects past the API server; not for pods (store.go)
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// What the kubelet puts into each pod.
const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 0:
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
		return nil
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 2 && args[0] == "get":
		return get(&http.Client{}, args[1], "")
	case len(args) == 2 && args[0] == "api":
		return api(args[1])
	case len(args) == 4 && args[0] == "bulk":
		return bulk(args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "store":
		return store(args[1], args[2], args[3], args[4])
	}
	return errors.New("serve ADDRESS | get URL | api PATH | bulk KUBECONFIG WORKERS RATE | store ETCD AUTHORITY CERTIFICATE KEY")
}

func serve(address string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Println(name, "serves", address)
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	}))
}

func api(path string) error {
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New("no certificate in " + account + "ca.crt")
	}
	host := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	return get(client, "https://"+host+path, "Bearer "+string(token))
}

func get(client *http.Client, url, authorization string) error {
	client.Timeout = 10 * time.Second
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err
	}
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}
