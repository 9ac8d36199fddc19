{{/* Name stem of all objects: the release's name, with ours unless it is in it already. As a dependency the chart may have an
alias, which the alerts would not know. */}}
{{- define "mlplatform.fullname" -}}
{{- if contains "mlplatform" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-mlplatform" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object; call with (list $ "component"). */}}
{{- define "mlplatform.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{ include "mlplatform.selector" . }}
{{- end -}}

{{/* Labels that select a component's pods; they never change. */}}
{{- define "mlplatform.selector" -}}
app.kubernetes.io/name: mlplatform
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Reference of one of our images; call with (list $ "operator"). A registry for all charts of a parent takes the place of the
host and leaves the path. */}}
{{- define "mlplatform.image" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $images := $root.Values.images -}}
{{- $registry := $images.registry -}}
{{- with $root.Values.global.imageRegistry -}}
{{- $registry = printf "%s/%s" . (regexReplaceAll "^[^/]*([.:][^/]*|localhost)(/|$)" $images.registry "") | trimSuffix "/" -}}
{{- end -}}
{{- index $images $name | default (printf "%s/%s:%s" $registry $name ($images.tag | default $root.Chart.AppVersion)) -}}
{{- end -}}

{{/* Secrets by name; a parent may give its own as objects with a name. */}}
{{- define "mlplatform.pullSecrets" -}}
{{- $names := .Values.images.pullSecrets -}}
{{- range .Values.global.imagePullSecrets -}}
{{- if kindIs "map" . }}{{ $names = append $names .name }}{{ else }}{{ $names = append $names . }}{{ end -}}
{{- end -}}
{{- with uniq $names }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The strictest pod security standard, restricted, for a pod and for its containers. */}}
{{- define "mlplatform.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{- define "mlplatform.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "mlplatform.storeSecret" -}}
{{- .Values.store.existingSecret | default (printf "%s-store" (include "mlplatform.fullname" .)) -}}
{{- end -}}

{{/* URL of the store's S3 API; empty for AWS S3. A pod's resolver completes it by the cluster's domain, whichever that is. */}}
{{- define "mlplatform.storeEndpoint" -}}
{{- if .Values.store.embedded.enabled -}}
http://{{ include "mlplatform.fullname" . }}-store.{{ .Release.Namespace }}.svc:8333
{{- else -}}
{{- .Values.store.endpoint -}}
{{- end -}}
{{- end -}}

{{- define "mlplatform.gateway" -}}
{{- .Values.gateway.name | default (printf "%s/%s" .Release.Namespace (include "mlplatform.fullname" .)) -}}
{{- end -}}

{{/* How clients reach the gateway. */}}
{{- define "mlplatform.gatewayScheme" -}}
{{- $own := and .Values.gateway.create (not .Values.gateway.name) -}}
{{- .Values.gateway.scheme | default (ternary "https" "http" (and $own (not (empty .Values.gateway.tlsSecret)))) -}}
{{- end -}}
{{- define "mlplatform.gatewayPort" -}}
{{- .Values.gateway.port | int | default (ternary 443 80 (eq (include "mlplatform.gatewayScheme" .) "https")) -}}
{{- end -}}

{{/* Where a model answers, as the operator's `virtualservice.url` puts it; call with (list $ "model" "namespace"). */}}
{{- define "mlplatform.modelUrl" -}}
{{- $root := index . 0 -}}
{{- $scheme := include "mlplatform.gatewayScheme" $root -}}{{- $port := include "mlplatform.gatewayPort" $root | int -}}
{{- printf "%s://%s.%s.%s" $scheme (index . 1) (index . 2) $root.Values.gateway.domain -}}
{{- if ne $port (ternary 443 80 (eq $scheme "https")) }}:{{ $port }}{{ end -}}
{{- end -}}

{{/* Istio before 1.22 serves no v1. */}}
{{- define "mlplatform.istioApiVersion" -}}
{{- if .Values.gateway.apiVersion -}}
{{- .Values.gateway.apiVersion -}}
{{- else if and (.Capabilities.APIVersions.Has "networking.istio.io/v1beta1") (not (.Capabilities.APIVersions.Has "networking.istio.io/v1")) -}}
networking.istio.io/v1beta1
{{- else -}}
networking.istio.io/v1
{{- end -}}
{{- end -}}

{{/* Spec of the KServe ServingRuntime that new versions get, as JSON; the operator adds the image. */}}
{{- define "mlplatform.servingRuntime" -}}
{{- $runtime := .Files.Get "files/servingruntime.yaml" | fromYaml -}}
{{- range $runtime.spec.containers -}}
{{- $security := omit .securityContext "runAsUser" "runAsGroup" -}}
{{- with $.Values.podSecurity.runAsUser -}}
{{- $security = merge $security (dict "runAsUser" (int64 .) "runAsGroup" (int64 .)) -}}
{{- end -}}
{{- $_ := set . "securityContext" $security -}}
{{- end -}}
{{- mustMergeOverwrite $runtime.spec .Values.servingRuntime.spec | toJson -}}
{{- end -}}

{{/* Annotations by which KServe's storage initializer trusts what the jobs trust. */}}
{{- define "mlplatform.kserveTrust" -}}
{{- with .Values.trust.configMap -}}
serving.kserve.io/s3-cabundle-configmap: {{ . | quote }}
serving.kserve.io/s3-cabundle: {{ printf "/etc/mlplatform/trust/%s" $.Values.trust.key | quote }}
{{- end -}}
{{- end -}}
