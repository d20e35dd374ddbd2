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
