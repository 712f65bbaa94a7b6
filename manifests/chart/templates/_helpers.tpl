{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice-agent
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/component: agent
app.kubernetes.io/part-of: sluice
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* What one value sets, another does not set again. */}}
{{- define "sluice.check" -}}
{{- $own := dict "SLUICE_SOURCE" "" "SLUICE_NODE_NAME" "" "SLUICE_ADMIN" "" "SLUICE_GRACE" "graceSeconds" "SLUICE_LOG" "log" "SLUICE_BPF_LOG" "bpfLog" "SLUICE_WORKERS" "workers" "SLUICE_LIMIT" "limits" "SLUICE_CGROUP" "cgroup" }}
{{- range .Values.extraEnv }}
{{- if get $own .name }}
{{- fail (printf "extraEnv: set the value %s in place of %s" (get $own .name) .name) }}
{{- else if hasKey $own .name }}
{{- fail (printf "extraEnv: %s is the chart's own" .name) }}
{{- end }}
{{- end }}
{{- if hasKey .Values.podAnnotations "sluice.dev/redirect" }}
{{- fail "podAnnotations: sluice.dev/redirect is the chart's own: an agent's connections never pass through an agent" }}
{{- end }}
{{- if and .Values.networkPolicy.from (not .Values.networkPolicy.enabled) }}
{{- fail "networkPolicy.from has no effect without networkPolicy.enabled=true" }}
{{- end }}
{{- if and .Values.monitoring.labels (not .Values.monitoring.enabled) }}
{{- fail "monitoring.labels has no effect without monitoring.enabled=true" }}
{{- end }}
{{- if and .Values.monitoring.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.from) }}
{{- fail "networkPolicy.from: name the pods of Prometheus, or with monitoring.enabled=true there is nothing it may read" }}
{{- end }}
{{- end }}
