// Writes to etcd what the API server would have written there: it takes some 20 ms of CPU to give a Service its address
// once there are thousands, and etcd some µs. It reads JSON from there as well as what it writes itself. In: on standard
// input a line for each change:
//
//	PUT KEY VALUE
//	DELETE KEY
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// In one transaction; etcd takes 128.
const together = 100

// One change in etcd's JSON: []byte is base64 there.
type change struct {
	Put    *entry `json:"request_put,omitempty"`
	Delete *entry `json:"request_delete_range,omitempty"`
}

type entry struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value,omitempty"`
}

func store(etcd, authority, certificate, key string) error {
	ca, err := os.ReadFile(authority)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New("no certificate in " + authority)
	}
	own, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: config}}
	var changes []change
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, longestLine)
	for in.Scan() {
		verb, rest, _ := strings.Cut(in.Text(), " ")
		key, value, _ := strings.Cut(rest, " ")
		switch verb {
		case "PUT":
			changes = append(changes, change{Put: &entry{[]byte(key), []byte(value)}})
		case "DELETE":
			changes = append(changes, change{Delete: &entry{Key: []byte(key)}})
		default:
			return fmt.Errorf("neither PUT nor DELETE: %s", in.Text())
		}
		if len(changes) == together {
			if err := commit(client, etcd, changes); err != nil {
				return err
			}
			changes = nil
		}
	}
	if in.Err() != nil || len(changes) == 0 {
		return in.Err()
	}
	return commit(client, etcd, changes)
}

func commit(client *http.Client, etcd string, changes []change) error {
	body, err := json.Marshal(map[string]any{"success": changes})
	if err != nil {
		return err
	}
	response, err := client.Post(etcd+"/v3/kv/txn", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("etcd: %s: %s", response.Status, said)
	}
	return err
}
