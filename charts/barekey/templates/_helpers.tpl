{{/* Everything has one fixed name: the Service must be `barekey`, and a cluster has one release. */}}

{{- define "barekey.webhookConfiguration" -}}
{{- /* The API server calls webhooks in the order of these names: this one wants to come first, before other webhooks have added containers of theirs. */ -}}
00-barekey
{{- end }}

{{- define "barekey.serverName" -}}
barekey.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "barekey.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:barekey
{{- end }}

{{- define "barekey.selectorLabels" -}}
app.kubernetes.io/name: barekey
app.kubernetes.io/component: operator
{{- end }}

{{- define "barekey.commonLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "barekey.labels" -}}
{{ include "barekey.selectorLabels" . }}
{{ include "barekey.commonLabels" . }}
{{- end }}

{{- define "barekey.uninstallLabels" -}}
app.kubernetes.io/name: barekey
app.kubernetes.io/component: uninstall
{{ include "barekey.commonLabels" . }}
{{- end }}

{{/* An image: (list $ .Values.image). */}}
{{- define "barekey.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $root.Values.registry }}{{ $root.Values.registry }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Namespaces whose pods the webhook never sees, as a JSON list. */}}
{{- define "barekey.exemptNamespaces" -}}
{{- concat (list "kube-system" .Release.Namespace) .Values.exemptNamespaces | uniq | toJson }}
{{- end }}

{{/*
CEL: loops take the API server seconds where there is much to go through (the square of its number). So one look at all of it
as a text comes first, and where there is much of it, the text decides alone: whoever writes our names into a value among so
many is taken for one who asks.
*/}}

{{/* CEL: whether a pod has an annotation of ours. */}}
{{- define "barekey.cel.annotated" -}}
(has(object.metadata.annotations) && '%s'.format([object.metadata.annotations]).contains('barekey.dev/') && (object.metadata.annotations.size() > 500 || object.metadata.annotations.exists(key, key.startsWith('barekey.dev/'))))
{{- end }}

{{/* CEL: whether a pod asks for injection, if only by a misspelt key; what the webhook writes asks for nothing. */}}
{{- define "barekey.cel.asks" -}}
(has(object.metadata.annotations) && '%s'.format([object.metadata.annotations]).contains('barekey.dev/') && (object.metadata.annotations.size() > 500 || object.metadata.annotations.exists(key, key.startsWith('barekey.dev/') && !key.startsWith('barekey.dev/injected') && key != 'barekey.dev/confirm-delete')))
{{- end }}

{{/* CEL: whether a container of the field `.` has an entry that only the webhook writes. */}}
{{- define "barekey.cel.ourEntry" -}}
(has(object.spec.{{ . }}) && object.spec.{{ . }} != null && ['%s'.format([object.spec.{{ . }}])].exists(text, text.contains('BAREKEY_ALLOWANCE') || text.contains('BAREKEY_AGENT_')) && (object.spec.{{ . }}.size() > 32 || object.spec.{{ . }}.exists(container, has(container.env) && (container.env.size() > 200 || container.env.exists(entry, entry.name == 'BAREKEY_ALLOWANCE' || entry.name.startsWith('BAREKEY_AGENT_'))))))
{{- end }}

{{/* CEL: whether a container of the field `.` was given an allowance. */}}
{{- define "barekey.cel.allowance" -}}
(has(object.spec.{{ . }}) && '%s'.format([object.spec.{{ . }}]).contains('BAREKEY_ALLOWANCE') && (object.spec.{{ . }}.size() > 32 || object.spec.{{ . }}.exists(container, has(container.env) && (container.env.size() > 200 || container.env.exists(entry, entry.name == 'BAREKEY_ALLOWANCE')))))
{{- end }}

{{/* CEL: whether a pod has a token for this vault. */}}
{{- define "barekey.cel.ourToken" -}}
(has(object.spec.volumes) && '%s'.format([object.spec.volumes]).contains('{{ include "barekey.serverName" . }}') && (object.spec.volumes.size() > 100 || object.spec.volumes.exists(volume, has(volume.projected) && has(volume.projected.sources) && volume.projected.sources != null && (volume.projected.sources.size() > 100 || volume.projected.sources.exists(source, has(source.serviceAccountToken) && has(source.serviceAccountToken.audience) && source.serviceAccountToken.audience == '{{ include "barekey.serverName" . }}')))))
{{- end }}

{{/* What must be true before anything is rendered. */}}
{{- define "barekey.check" -}}
{{- if and (not .Values.masterKey.secret.name) (not .Values.masterKey.file) }}
{{- fail (printf "\n\nThe vault needs a master key of yours; this chart never makes one. Make one, keep a copy of it away from the cluster, and name it:\n\n  head -c 32 /dev/urandom | base64 > master.key\n  kubectl -n %s create secret generic barekey-master-key --from-file=master.key\n  helm ... --set masterKey.secret.name=barekey-master-key\n\nor bring a file with extraVolumes and extraVolumeMounts and set masterKey.file to its path.\n" .Release.Namespace) }}
{{- end }}
{{- if and .Values.masterKey.secret.name .Values.masterKey.file }}
{{- fail "masterKey.secret.name and masterKey.file are both set: one of them" }}
{{- end }}
{{- if and .Values.database.postgres.ca.configMap .Values.database.postgres.ca.secret }}
{{- fail "database.postgres.ca.configMap and database.postgres.ca.secret are both set: one of them" }}
{{- end }}
{{- if and (eq .Values.database.kind "postgres") (not .Values.database.postgres.urlSecret.name) }}
{{- fail "database.kind is postgres: name the Secret of yours that holds its URL in database.postgres.urlSecret.name" }}
{{- end }}
{{- $other := lookup "admissionregistration.k8s.io/v1" "MutatingWebhookConfiguration" "" (include "barekey.webhookConfiguration" .) }}
{{- if $other }}
{{- $annotations := $other.metadata.annotations | default dict }}
{{- $name := index $annotations "meta.helm.sh/release-name" | default "" }}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" | default "" }}
{{- if and $name (or (ne $name .Release.Name) (ne $namespace .Release.Namespace)) }}
{{- if lookup "v1" "Service" $namespace "barekey" }}
{{- fail (printf "release %s in namespace %s is installed here already, and a cluster has one: upgrade that one, or uninstall it first" $name $namespace) }}
{{- else }}
{{- fail (printf "\n\nRelease %s is gone from namespace %s, but not what it had outside of it, which refuses pods that ask for injection: the namespace was deleted before `helm uninstall`. Remove the rest, and install again:\n\n  kubectl delete mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings --selector app.kubernetes.io/name=barekey\n\nor install under that name in that namespace, which takes it over.\n" $name $namespace) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether the definition of that name is this release's to bring: (list $ "barekeystages.barekey.dev"). Not empty: yes. */}}
{{- define "barekey.crds.ours" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.crds.install -}}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" (index . 1) -}}
{{- if not $there -}}
yes
{{- else -}}
{{- $annotations := $there.metadata.annotations | default dict -}}
{{- if and (eq (index $annotations "meta.helm.sh/release-name" | default "") $root.Release.Name) (eq (index $annotations "meta.helm.sh/release-namespace" | default "") $root.Release.Namespace) -}}
yes
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What Pod Security calls restricted. */}}
{{- define "barekey.podSecurityContext" -}}
runAsNonRoot: true
{{- range $key, $value := .Values.podSecurityContext }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }}: {{ $value | int64 }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "barekey.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end }}
