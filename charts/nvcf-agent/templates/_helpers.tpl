{{- define "agent.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "agent.selector" -}}
app.kubernetes.io/name: nvcf-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "agent.labels" -}}
{{ include "agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Takes (list root image). */}}
{{- define "agent.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $registry := get $image "registry" | default $root.Values.image.registry }}
{{- $name := ternary $image.repository (printf "%s/%s" $registry $image.repository) (empty $registry) }}
{{- if $image.digest }}{{ $name }}@{{ $image.digest }}{{ else }}{{ $name }}:{{ $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Cluster-wide objects of two releases must not share a name. */}}
{{- define "agent.clusterName" -}}
{{ include "agent.fullname" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "agent.usesToken" -}}
{{- if and (not .Values.registration.enabled) (eq .Values.registration.identity "token") }}true{{ end }}
{{- end }}

{{/* The namespace in a URL such as http://nvcf-gateway.nvcf.svc.cluster.local:8080; empty for others. */}}
{{- define "agent.controlPlaneNamespace" -}}
{{- $host := (urlParse .Values.controlPlane.url).host | splitList ":" | first }}
{{- $parts := splitList "." $host }}
{{- if .Values.functions.controlPlaneNamespace }}{{ .Values.functions.controlPlaneNamespace }}
{{- else if and (ge (len $parts) 3) (eq (index $parts 2) "svc") }}{{ index $parts 1 }}{{ end }}
{{- end }}

{{- define "agent.clusterSecret" -}}
{{- if .Values.registration.enabled }}{{ include "agent.fullname" . }}-cluster{{ else }}{{ required "registration.keySecretName is needed with registration.identity=key" .Values.registration.keySecretName }}{{ end }}
{{- end }}

{{- define "agent.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "agent.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
