// The whole ECS flow with the AWS SDK for JavaScript v3, as it is used: clients, commands, waiters, typed errors.
// Where to find the platform comes in the AWS_* variables, as for any program. Prints one JSON document.
import { strict as assert } from "node:assert";
import {
  ClientException,
  ClusterNotFoundException,
  ConflictException,
  CreateClusterCommand,
  DescribeTasksCommand,
  ECSClient,
  InvalidParameterException,
  RegisterTaskDefinitionCommand,
  RunTaskCommand,
  StopTaskCommand,
  paginateListTasks,
  waitUntilTasksRunning,
  waitUntilTasksStopped,
} from "@aws-sdk/client-ecs";
import {
  CloudWatchLogsClient,
  CreateLogGroupCommand,
  CreateLogStreamCommand,
  GetLogEventsCommand,
  PutLogEventsCommand,
  ResourceAlreadyExistsException,
  ResourceNotFoundException,
  StartLiveTailCommand,
} from "@aws-sdk/client-cloudwatch-logs";

const ecs = new ECSClient({});
const logs = new CloudWatchLogsClient({ disableHostPrefix: true });
const cluster = "js";

async function refused(kind, send) {
  try {
    await send();
  } catch (error) {
    assert(error instanceof kind, `${error.name} is not ${kind.name}: ${error.message}`);
    assert(error.message && error.$metadata.requestId && error.$fault === "client");
    return error;
  }
  assert.fail(`no ${kind.name}`);
}

async function theTaskFlow() {
  const created = await ecs.send(new CreateClusterCommand({ clusterName: cluster }));
  assert.equal(created.cluster.status, "ACTIVE");
  const { taskDefinition } = await ecs.send(
    new RegisterTaskDefinitionCommand({
      family: "js",
      networkMode: "awsvpc",
      requiresCompatibilities: ["FARGATE"],
      cpu: "256",
      memory: "512",
      containerDefinitions: [{ name: "main", image: "x", portMappings: [{ containerPort: 80 }] }],
    }),
  );
  assert(taskDefinition.registeredAt instanceof Date);
  const token = "js-1";
  const run = { cluster, taskDefinition: "js", launchType: "FARGATE", count: 2, clientToken: token };
  const { tasks, failures } = await ecs.send(new RunTaskCommand(run));
  assert.equal(failures.length, 0);
  const arns = tasks.map((t) => t.taskArn);
  const waiting = { client: ecs, maxWaitTime: 30, minDelay: 1, maxDelay: 1 };
  assert.equal((await waitUntilTasksRunning(waiting, { cluster, tasks: arns })).state, "SUCCESS");
  const seen = await ecs.send(new DescribeTasksCommand({ cluster, tasks: arns, include: ["TAGS"] }));
  for (const task of seen.tasks) {
    assert.equal(task.lastStatus, "RUNNING");
    assert(task.startedAt instanceof Date && task.createdAt <= task.startedAt);
    assert.match(task.containers[0].networkInterfaces[0].privateIpv4Address, /^10\./);
  }
  const listed = [];
  for await (const page of paginateListTasks({ client: ecs, pageSize: 1 }, { cluster })) listed.push(...page.taskArns);
  assert.deepEqual(listed.sort(), [...arns].sort());
  const conflict = await refused(ConflictException, () => ecs.send(new RunTaskCommand({ ...run, count: 1 })));
  assert.deepEqual([...conflict.resourceIds].sort(), [...arns].sort());
  for (const task of arns) await ecs.send(new StopTaskCommand({ cluster, task, reason: "enough" }));
  assert.equal((await waitUntilTasksStopped(waiting, { cluster, tasks: arns })).state, "SUCCESS");
  const after = await ecs.send(new DescribeTasksCommand({ cluster, tasks: [...arns, "0".repeat(32)] }));
  assert.equal(after.failures[0].reason, "MISSING");
  for (const task of after.tasks) {
    assert.equal(task.stopCode, "UserInitiated");
    assert.equal(task.stoppedReason, "enough");
    assert(task.stoppedAt >= task.startedAt);
  }
  return arns;
}

async function theErrors() {
  const run = { cluster, taskDefinition: "js", launchType: "FARGATE" };
  const missing = await refused(ClusterNotFoundException, () =>
    ecs.send(new RunTaskCommand({ ...run, cluster: "nope" })),
  );
  assert.equal(missing.message, "Cluster not found.");
  await refused(ClientException, () => ecs.send(new RunTaskCommand({ ...run, taskDefinition: "nope" })));
  await refused(InvalidParameterException, () => ecs.send(new RunTaskCommand({ ...run, count: 11 })));
  await refused(ClientException, () =>
    ecs.send(new RegisterTaskDefinitionCommand({ family: "js", containerDefinitions: [] })),
  );
}

async function theLogs() {
  const logGroupName = "/js";
  const logStreamName = "s";
  await logs.send(new CreateLogGroupCommand({ logGroupName }));
  await logs.send(new CreateLogStreamCommand({ logGroupName, logStreamName }));
  await refused(ResourceAlreadyExistsException, () => logs.send(new CreateLogGroupCommand({ logGroupName })));
  await refused(ResourceNotFoundException, () =>
    logs.send(new GetLogEventsCommand({ logGroupName: "/nope", logStreamName })),
  );
  const group = "arn:aws:logs:us-east-1:000000000000:log-group:/js";
  const tail = await logs.send(new StartLiveTailCommand({ logGroupIdentifiers: [group] }));
  const put = { logGroupName, logStreamName, logEvents: [{ timestamp: Date.now(), message: "grüße" }] };
  for await (const event of tail.responseStream) {
    if (event.sessionStart) await logs.send(new PutLogEventsCommand(put));
    const found = event.sessionUpdate?.sessionResults ?? [];
    if (found.length > 0) {
      assert.equal(found[0].message, "grüße");
      break;
    }
  }
  const { events } = await logs.send(new GetLogEventsCommand({ logGroupName, logStreamName }));
  assert.deepEqual(events.map((e) => e.message), ["grüße"]);
}

const arns = await theTaskFlow();
await theErrors();
await theLogs();
console.log(JSON.stringify({ tasks: arns.length }));
process.exit(0);
