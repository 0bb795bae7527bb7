#!/bin/sh
# Rights of the users of Kafka, the least that each process needs; the tests run with these.
# For brokers with an authorizer, by Kafka's own tool:
#
#     CONNECTION="--bootstrap-server HOST:9093 --command-config admin.properties" ./kafka-acls.sh
#
# The names below are those of the settings kafka.transactions_topic, ... and kafka.group.
# Read and Write allow Describe too, so that is not listed beside them.
set -eu
: "${CONNECTION:?as above}"
: "${TRANSACTIONS:=transactions}" "${LABELS:=labels}"
: "${DECISIONS:=decisions}" "${DEAD_LETTERS:=dead-letters}"
: "${GROUP:=freshscore}"

allow() {
    user=$1 operation=$2
    shift 2
    # CONNECTION is several words.
    # shellcheck disable=SC2086
    kafka-acls.sh $CONNECTION --add --allow-principal "User:$user" --operation "$operation" "$@"
}

# A service with Scorer.open("shared"). Where kafka.produce is false it needs no transactions.
allow freshscore-scorer Write --topic "$TRANSACTIONS"
allow freshscore-scorer Write --topic "$LABELS"
allow freshscore-scorer Write --topic "$DECISIONS"

# freshscore shadow: the payments in a group of its own, and at its start whether all topics are what
# they must be.
allow freshscore-shadow Read --topic "$TRANSACTIONS"
allow freshscore-shadow Read --group "$GROUP-shadow"
allow freshscore-shadow Write --topic "$DECISIONS"
allow freshscore-shadow Describe --topic "$LABELS"
allow freshscore-shadow Describe --topic "$DEAD_LETTERS"
for topic in "$TRANSACTIONS" "$LABELS" "$DECISIONS" "$DEAD_LETTERS"; do
    allow freshscore-shadow DescribeConfigs --topic "$topic"
done

# freshscore consume: it looks at its start whether all topics are what they must be.
allow freshscore-consumer Read --topic "$TRANSACTIONS"
allow freshscore-consumer Read --topic "$LABELS"
allow freshscore-consumer Read --group "$GROUP"
allow freshscore-consumer Write --topic "$DEAD_LETTERS"
allow freshscore-consumer Describe --topic "$DECISIONS"
for topic in "$TRANSACTIONS" "$LABELS" "$DECISIONS" "$DEAD_LETTERS"; do
    allow freshscore-consumer DescribeConfigs --topic "$topic"
done

# All other commands of freshscore; Create is for topics check --create.
allow freshscore-operator Read --topic "$TRANSACTIONS"
allow freshscore-operator Read --topic "$LABELS"
allow freshscore-operator Read --topic "$DECISIONS"
allow freshscore-operator Read --topic "$DEAD_LETTERS"
allow freshscore-operator Describe --group "$GROUP"
allow freshscore-operator Write --topic "$TRANSACTIONS"
allow freshscore-operator Write --topic "$LABELS"
for topic in "$TRANSACTIONS" "$LABELS" "$DECISIONS" "$DEAD_LETTERS"; do
    allow freshscore-operator DescribeConfigs --topic "$topic"
    allow freshscore-operator Create --topic "$topic"
done
