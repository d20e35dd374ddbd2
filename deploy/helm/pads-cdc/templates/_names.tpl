{{- define "pads-cdc.name" -}}
{{- if contains "pads-cdc" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-pads-cdc" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "pads-cdc.selector" -}}
app.kubernetes.io/name: pads-cdc
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pads-cdc.labels" -}}
{{ include "pads-cdc.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pads-cdc.relaySelector" -}}
app.kubernetes.io/name: pads-cdc-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pads-cdc.authorizerSelector" -}}
app.kubernetes.io/name: pads-cdc-authorizer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pads-cdc.broker" -}}
- name: BROKER_URL
  value: {{ .Values.broker.url | quote }}
- name: BROKER_STREAM
  value: {{ .Values.broker.stream | quote }}
{{- if .Values.broker.existingSecret }}
{{- if .Values.broker.credentials }}
- name: BROKER_CREDENTIALS_FILE
  value: /etc/pads-cdc/broker/credentials
{{- end }}
{{- if .Values.broker.ca }}
- name: BROKER_TLS_CA_FILE
  value: /etc/pads-cdc/broker/ca.crt
{{- end }}
{{- if .Values.broker.seal }}
- name: BROKER_SEAL_FILE
  value: /etc/pads-cdc/broker/seal.keys
{{- end }}
{{- end }}
{{- end }}
