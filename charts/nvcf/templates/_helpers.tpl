{{- define "nvcf.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels by which Services and policies find pods; takes (list root component). */}}
{{- define "nvcf.selector" -}}
app.kubernetes.io/name: nvcf
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "nvcf.labels" -}}
{{ include "nvcf.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{/* Takes (list root image). */}}
{{- define "nvcf.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $registry := get $image "registry" | default $root.Values.image.registry }}
{{- $name := ternary $image.repository (printf "%s/%s" $registry $image.repository) (empty $registry) }}
{{- if $image.digest }}{{ $name }}@{{ $image.digest }}{{ else }}{{ $name }}:{{ $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Takes (list root part). */}}
{{- define "nvcf.secret" -}}
{{ get (index . 0).Values.secrets (index . 1) | default (printf "%s-%s" (include "nvcf.fullname" (index . 0)) (index . 1)) }}
{{- end }}

{{- define "nvcf.host" -}}
{{ include "nvcf.fullname" (index . 0) }}-{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc.{{ (index . 0).Values.clusterDomain }}
{{- end }}

{{/* How workers reach a single gateway pod: with TLS by a name, since no certificate has addresses of pods. */}}
{{- define "nvcf.gatewayPod" -}}
{{- if .Values.gateway.tls.secretName }}{pod-ip}.{{ include "nvcf.host" (list . "gateway-pods") }}{{ else }}$(POD_IP){{ end }}
{{- end }}

{{- define "nvcf.natsUrl" -}}
{{- if .Values.nats.enabled -}}
{{ ternary "tls" "nats" (not (empty .Values.nats.tls.secretName)) }}://{{ include "nvcf.host" (list . "nats") }}:4222
{{- else -}}
{{ required "nats.external.urls is needed when nats.enabled is false" .Values.nats.external.urls }}
{{- end }}
{{- end }}

{{/* Copies of each stream. */}}
{{- define "nvcf.replicas" -}}
{{- $nodes := int (ternary .Values.nats.replicas .Values.nats.external.replicas .Values.nats.enabled) }}{{ ternary 3 1 (ge $nodes 3) }}
{{- end }}

{{/* Secret with the authority of the broker's certificate; empty: the system's. */}}
{{- define "nvcf.natsCa" -}}
{{ ternary .Values.nats.tls.secretName .Values.nats.external.caSecretName .Values.nats.enabled }}
{{- end }}

{{- define "nvcf.scheme" -}}
{{ ternary "https" "http" (not (empty .Values.gateway.tls.secretName)) }}
{{- end }}

{{- define "nvcf.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "nvcf.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods run; takes (list root values component). */}}
{{- define "nvcf.scheduling" -}}
{{- $root := index . 0 }}{{ $values := index . 1 }}{{ $component := index . 2 -}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "nvcf.selector" (list $root $component) | nindent 8 }}
{{- end }}
{{- end }}

{{- define "nvcf.environment" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
{{- if include "nvcf.natsCa" . }}
- {name: SSL_CERT_FILE, value: /etc/nvcf/broker-ca/ca.crt}
{{- end }}
{{- with .Values.telemetry.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ quote . }}}
- {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ quote $.Values.telemetry.protocol }}}
{{- with $.Values.telemetry.headersSecretName }}
- {name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {secretKeyRef: {name: {{ . }}, key: headers}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "nvcf.pdb" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "nvcf.fullname" $root }}-{{ $component }}
  labels: {{ include "nvcf.labels" (list $root $component) | nindent 4 }}
spec:
  maxUnavailable: {{ (get $root.Values $component).podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{ include "nvcf.selector" (list $root $component) | nindent 6 }}
{{- end }}
