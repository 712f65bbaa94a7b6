// Many requests to the API server, fast: kubectl makes a process and a connection for each. In: a kubeconfig in JSON with
// files of a client certificate, and on standard input a line for each request:
//
//	METHOD PATH [BODY]
//
// Out: a line for each answer that came, in the order in which they came; times are microseconds since 1970:
//
//	STATUS SENT ANSWERED METHOD PATH
//
// WORKERS requests are under way at a time at most, and RATE are begun a second (0: as many as the workers can).
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A body with an EndpointSlice of 1,000 endpoints.
const longestLine = 1 << 20

func bulk(kubeconfig, workers, rate string) error {
	server, client, err := admin(kubeconfig)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(workers)
	if err != nil || count < 1 {
		return errors.New("WORKERS: a number from 1")
	}
	perSecond, err := strconv.ParseFloat(rate, 64)
	if err != nil || perSecond < 0 {
		return errors.New("RATE: a number, or 0 for as fast as it goes")
	}

	lines, failed := make(chan string), make(chan error, count)
	out := &answers{to: bufio.NewWriter(os.Stdout)}
	var all sync.WaitGroup
	for range count {
		all.Go(func() {
			// Goes on after an error, or nobody would take the lines.
			for line := range lines {
				if err := out.of(server, client, line); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, longestLine)
	start := time.Now()
	for begun := 0; in.Scan(); begun++ {
		if perSecond > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(float64(begun) / perSecond * float64(time.Second)))))
		}
		lines <- in.Text()
	}
	close(lines)
	all.Wait()
	close(failed)
	return errors.Join(in.Err(), <-failed, out.to.Flush())
}

type answers struct {
	lock sync.Mutex
	to   *bufio.Writer
}

func (a *answers) of(server string, client *http.Client, line string) error {
	method, rest, _ := strings.Cut(line, " ")
	path, body, _ := strings.Cut(rest, " ")
	request, err := http.NewRequest(method, server+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/json-patch+json")
	}
	sent := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	answered := time.Now()
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, said)
	}
	a.lock.Lock()
	defer a.lock.Unlock()
	fmt.Fprintln(a.to, response.StatusCode, sent.UnixMicro(), answered.UnixMicro(), method, path)
	return err
}

// The server of a kubeconfig, and a client that it knows.
func admin(kubeconfig string) (string, *http.Client, error) {
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		return "", nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `json:"certificate-authority"`
			}
		}
		Users []struct {
			User struct {
				Certificate string `json:"client-certificate"`
				Key         string `json:"client-key"`
			}
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return "", nil, fmt.Errorf("%s: no JSON: %w", kubeconfig, err)
	}
	if len(config.Clusters) == 0 || len(config.Users) == 0 {
		return "", nil, errors.New(kubeconfig + ": names no cluster or no user")
	}
	cluster, user := config.Clusters[0].Cluster, config.Users[0].User
	ca, err := os.ReadFile(cluster.CA)
	if err != nil {
		return "", nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return "", nil, errors.New("no certificate in " + cluster.CA)
	}
	own, err := tls.LoadX509KeyPair(user.Certificate, user.Key)
	if err != nil {
		return "", nil, err
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}},
		ForceAttemptHTTP2: true,
	}
	return cluster.Server, &http.Client{Transport: transport, Timeout: time.Minute}, nil
}
